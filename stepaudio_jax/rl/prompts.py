"""Where a run's prompts come from, by the number of the update: a function of (seed, update), so that a run that was
interrupted goes on with the same ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stepaudio_jax import miniature
from stepaudio_jax.data.permutation import permute
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.rl.rewards import AnyReward, Reward
from stepaudio_jax.rl.rollout import Prompt
from stepaudio_jax.text import Conversation
from stepaudio_jax.training.configs import Config


class Prompts(Protocol):
    def __call__(self, update: int) -> list[Prompt]:
        """Those of an update, the first of which is number 0."""
        ...


def prompts_of(config: Config) -> Prompts:
    """By a config's `prompts` section: `miniature`, or stored data sets in `sources`.

    Raises:
      ValueError: neither.
    """
    if "miniature" in config.prompts:
        return MiniaturePrompts(config)
    if not config.prompts.get("sources"):
        raise ValueError("prompts: expected a section miniature, or data sets in sources, found neither")
    return StoredPrompts(config)


def reward_of(options: Config) -> AnyReward:
    """The reward of a data set: `reward`, its name; `accuracy`, where it wraps another, the name of that."""
    return Reward(options.reward, {"accuracy": options.accuracy}) if options.accuracy else options.reward


class MiniaturePrompts:
    """Fresh scenes and questions.

    config.prompts.miniature: kinds (all, if empty), max_events, text_share; reward and accuracy (`reward_of`).
    """

    def __init__(self, config: Config):
        self._seed, self._count, self._options = config.seed, config.rl.prompts, config.prompts.miniature

    def __call__(self, update: int) -> list[Prompt]:
        rng, options = np.random.default_rng((self._seed, update)), self._options
        reward = reward_of(options)
        kinds = tuple(options.kinds) or miniature.KINDS
        made = []
        for _ in range(self._count):
            if rng.random() < options.text_share:
                question = miniature.make_text_question(rng)
            else:
                kind = kinds[int(rng.integers(len(kinds)))]
                question = miniature.make_question(rng, kind, max_events=options.max_events)
            extra = {"scene": question.scene} if question.scene else {}
            made.append(Prompt(question.prompt, question.answer, question.kind, reward, extra))
        return made


@dataclasses.dataclass
class _Stored:
    name: str
    dataset: StoredDataset
    weight: float
    reward: AnyReward
    truth: str


class StoredPrompts:
    """Records of data sets that `stepaudio data build` wrote, by weight, each in an order of its own, over and over.

    config.prompts.sources: by name, path, weight, reward and accuracy (`reward_of`), and truth, the column of the
    record that holds it; "": the answer of its last assistant turn.
    """

    def __init__(self, config: Config):
        self._seed, self._count = config.seed, config.rl.prompts
        self._sources = [
            _Stored(name, StoredDataset(s.path), float(s.weight), reward_of(s), s.truth)
            for name, s in config.prompts.sources.items()
        ]
        if empty := [source.name for source in self._sources if not len(source.dataset)]:
            raise ValueError(f"prompts.sources.{empty[0]}: expected records, found none")
        weights = np.array([source.weight for source in self._sources])
        if not (weights > 0).all():
            raise ValueError("prompts.sources: expected weights above 0")
        self._shares = np.cumsum(weights / weights.sum())[:-1]

    def __call__(self, update: int) -> list[Prompt]:
        first, end = update * self._count, (update + 1) * self._count
        drawn = np.searchsorted(self._shares, np.random.default_rng(self._seed).random(end), side="right")
        before = np.bincount(drawn[:first], minlength=len(self._sources))  # prompts that each source has given
        made = []
        for at in drawn[first:]:
            made.append(self._prompt(int(at), int(before[at])))
            before[at] += 1
        return made

    def _prompt(self, at: int, number: int) -> Prompt:
        """A source's next, in an order of its own for every pass over it."""
        source = self._sources[at]
        epoch, place = divmod(number, len(source.dataset))
        record = permute(np.array([place], np.uint64), len(source.dataset), (self._seed, at, epoch))[0]
        sample = source.dataset[int(record)]
        turns = list(sample.conversation.turns)
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
        extra: dict[str, Any] = dict(sample.conversation.extra)
        if source.truth and source.truth not in extra:
            raise ValueError(f"{sample.where}: expected a column {source.truth}, found {_known(list(extra))}")
        truth = extra[source.truth] if source.truth else (turns[last].text if last is not None else None)
        if truth is None:
            raise ValueError(f"{sample.where}: expected an answer to compare with, found none")
        asked = turns if last is None else turns[:last]
        return Prompt(Conversation(tuple(asked), sample.conversation.tools), truth, source.name, source.reward, extra)


def _known(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
