"""Where a run's prompts come from, by the number of the update: a function of (seed, update), so that a run that was
interrupted goes on with the same ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from stepaudio_jax import miniature
from stepaudio_jax.data.permutation import permute
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.rl.reward_model.templates import RubricError, rubric_of
from stepaudio_jax.rl.rewards import AnyReward, Reward
from stepaudio_jax.rl.rollout import Prompt
from stepaudio_jax.text import Conversation, system
from stepaudio_jax.training.configs import Config

PREFERENCE = "preference"
"""Name of the reward of prompts whose replies are compared with a reference: `Prompt.truth`, by the rubric in the
record's column `rubric` where it has one (reward_model/scoring.py)."""

MIDDLING = miniature.Care(0.5, 0.5, 0.5)

ENDLESS = 2**40
"""Records of the small world where a config does not number them: none comes twice."""


class Source(Protocol):
    """Prompts that can be counted and fetched by number."""

    name: str
    weight: float

    def __len__(self) -> int: ...

    def prompt(self, record: int) -> Prompt: ...


class Prompts:
    """Drawn from sources by weight, each in an order of its own, over and over.

    config.prompts: `miniature` (`MiniatureSource`), `dialogues` (`DialogueSource`), stored data sets in `sources`
    (`StoredSource`), or several of them; `kept`, what `stepaudio rl filter` has left of them, "" for all.
    """

    def __init__(self, config: Config):
        """Raises:
        ValueError: no prompts, or none left; weights that are not above 0; `kept` of other sources.
        """
        self._seed, self._count = config.seed, config.rl.prompts
        self._sources = sources_of(config)
        self._kept: list[Sequence[int]] = [range(len(source)) for source in self._sources]
        if config.prompts.get("kept"):
            self._kept = read_kept(config.prompts.kept, self._sources)
        for source, kept in zip(self._sources, self._kept, strict=True):
            if not len(kept):
                raise ValueError(f"prompts.sources.{source.name}: expected records, found none")
        weights = np.array([source.weight for source in self._sources])
        if not (weights > 0).all():
            raise ValueError("prompts.sources: expected weights above 0")
        self._shares = np.cumsum(weights / weights.sum())[:-1]

    def __call__(self, update: int) -> list[Prompt]:
        """Those of an update, the first of which is number 0."""
        first, end = update * self._count, (update + 1) * self._count
        drawn = np.searchsorted(self._shares, np.random.default_rng(self._seed).random(end), side="right")
        given = np.bincount(drawn[:first], minlength=len(self._sources))  # prompts that each source has given
        made = []
        for at in drawn[first:]:
            made.append(self._next(int(at), int(given[at])))
            given[at] += 1
        return made

    def _next(self, at: int, number: int) -> Prompt:
        kept = self._kept[at]
        epoch, place = divmod(number, len(kept))
        found = permute(np.array([place], np.uint64), len(kept), (self._seed, at, epoch))[0]
        return self._sources[at].prompt(kept[int(found)])


def sources_of(config: Config) -> list[Source]:
    """By a config's `prompts` section.

    Raises:
      ValueError: neither the small world nor data sets.
    """
    found: list[Source] = [MiniatureSource(config)] if "miniature" in config.prompts else []
    found += [DialogueSource(config)] if "dialogues" in config.prompts else []
    found += [StoredSource(name, options) for name, options in config.prompts.get("sources", {}).items()]
    if not found:
        raise ValueError("prompts: expected a section miniature or dialogues, or data sets in sources, found none")
    return found


def read_kept(path: epath.PathLike, sources: Sequence[Source]) -> list[Sequence[int]]:
    """Of each source the records that a filter kept (filter.py).

    Raises:
      ValueError: the filter looked at other sources, or at as many records of one as it does not have.
    """
    kept = json.loads(epath.Path(path).read_text())["sources"]
    for source in sources:
        found = kept.get(source.name)
        if found is None or found["records"] != len(source):
            seen = "none" if found is None else f"{found['records']:,}"
            raise ValueError(f"{path}: expected {len(source):,} records of {source.name} filtered, found {seen}")
    return [kept[source.name]["kept"] for source in sources]


def with_rubric(prompt: Prompt) -> Prompt:
    """The prompt with its rubric as the policy's instruction, while the judge sees the dialogue as it was (R1.5 §3.3,
    equations 4 and 5 read literally); one without a rubric as it is."""
    text = ""
    with contextlib.suppress(RubricError):  # its replies will have no reward, and say so
        text, _ = rubric_of(prompt.extra.get("rubric"))
    if not text:
        return prompt
    first, *rest = prompt.conversation.turns
    said = f"Your reply will be judged by:\n{text}"
    turns = (system(f"{first.text}\n\n{said}"), *rest) if first.role == "system" else (system(said), first, *rest)
    conversation = dataclasses.replace(prompt.conversation, turns=turns)
    return dataclasses.replace(prompt, conversation=conversation, history=prompt.history or prompt.conversation)


def reward_of(options: Config) -> AnyReward:
    """The reward of a data set: `reward`, its name; `accuracy`, where it wraps another, the name of that."""
    return Reward(options.reward, {"accuracy": options.accuracy}) if options.accuracy else options.reward


class MiniatureSource:
    """Scenes and questions of the small world, each drawn from (seed, its number).

    config.prompts.miniature: kinds (all, if empty), max_events, text_share; records (0: endless); seed (the run's, if
    None); wrong_captions, the share of the questions whose caption contradicts the sound (miniature.captions; None: no
    captions at all); weight; reward and accuracy (`reward_of`).
    """

    name = "miniature"

    def __init__(self, config: Config):
        self._options = config.prompts.miniature
        self.weight = float(self._options.get("weight", 1.0))
        own = self._options.get("seed")
        self._seed = config.seed if own is None else own
        self._reward = reward_of(self._options)

    def __len__(self) -> int:
        return self._options.get("records", 0) or ENDLESS

    def prompt(self, record: int) -> Prompt:
        rng, options = np.random.default_rng((self._seed, record)), self._options
        kinds = tuple(options.kinds) or miniature.KINDS
        if rng.random() < options.text_share:
            question = miniature.make_text_question(rng)
            return Prompt(question.prompt, question.answer, question.kind, self._reward)
        kind = kinds[int(rng.integers(len(kinds)))]
        if (wrong := options.get("wrong_captions")) is None:
            question = miniature.make_question(rng, kind, max_events=options.max_events)
        else:
            contradicts = bool(rng.random() < wrong)
            question = miniature.make_captioned(rng, kind, contradicts=contradicts, max_events=options.max_events)
        extra = {"scene": question.scene, "kind": question.kind}
        return Prompt(question.prompt, question.answer, question.kind, self._reward, extra)


class DialogueSource:
    """Dialogues of the small world, each drawn from (seed, its number); their replies are preferred or not, by a rubric
    or without one. What they are compared with is middling: it does each thing half of the time.

    config.prompts.dialogues: kinds (all, if empty), max_events, rubric_share, records (0: endless), seed (the run's, if
    None), weight.
    """

    name = "dialogues"

    def __init__(self, config: Config):
        self._options = config.prompts.dialogues
        self.weight, own = float(self._options.weight), self._options.get("seed")
        self._seed = config.seed if own is None else own

    def __len__(self) -> int:
        return self._options.records or ENDLESS

    def prompt(self, record: int) -> Prompt:
        rng, options = np.random.default_rng((self._seed, 5, record)), self._options
        kind = str(rng.choice(options.kinds)) if options.kinds else None
        made = miniature.make_dialogue(rng, kind, care=MIDDLING, max_events=options.max_events)
        ruled = bool(rng.random() < options.rubric_share)
        extra = dict(made.conversation.extra) | ({} if ruled else {"rubric": ""})
        reference = made.conversation.turns[-1].text
        return Prompt(made.prompt, reference, "rubric" if ruled else "preference", PREFERENCE, extra)


class StoredSource:
    """A data set that `stepaudio data build` wrote.

    config.prompts.sources.NAME: path, weight, reward and accuracy (`reward_of`), and truth, the column of the record
    that holds it; "": the answer of its last assistant turn.
    """

    def __init__(self, name: str, options: Config):
        self.name, self.weight = name, float(options.weight)
        self._dataset, self._reward, self._truth = StoredDataset(options.path), reward_of(options), options.truth

    def __len__(self) -> int:
        return len(self._dataset)

    def prompt(self, record: int) -> Prompt:
        sample = self._dataset[record]
        turns = list(sample.conversation.turns)
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
        extra: dict[str, Any] = dict(sample.conversation.extra)
        if self._truth and self._truth not in extra:
            known = ", ".join(extra) or "none"
            raise ValueError(f"{sample.where}: expected a column {self._truth}, found {known}")
        truth = extra[self._truth] if self._truth else (turns[last].text if last is not None else None)
        if truth is None:
            raise ValueError(f"{sample.where}: expected an answer to compare with, found none")
        asked = turns if last is None else turns[:last]
        prompt = Conversation(tuple(asked), sample.conversation.tools, extra)
        return Prompt(prompt, truth, self.name, self._reward, extra)
