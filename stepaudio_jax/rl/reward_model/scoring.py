"""Rewards of a stage that mixes what can be verified with what is preferred (R1.5 §3.3)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.parallel.first import of_first
from stepaudio_jax.rl.prompts import PREFERENCE
from stepaudio_jax.rl.reward_model.compare import NOT_SHOWN, Compares
from stepaudio_jax.rl.reward_model.templates import Comparison, RubricError, rubric_of
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.rl.scoring import score


class MixedScore:
    """A `rl.scoring.Score`: preferences by the reward model, all other rewards by the runner."""

    def __init__(self, runner: RewardRunner, model: Compares, *, by_all: bool = False):
        """
        Args:
          by_all: it is called on every process of a run, for the judge needs them all (build.judged_by_all).
        """
        self._runner, self._model, self.by_all = runner, model, by_all

    def __call__(
        self, prompts: Sequence[Prompt], sampled: Sequence[Sampled]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """A reply whose thinking was never closed says nothing: the lowest level, and nobody is asked."""
        values, valid = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), bool)
        preferred = [i for i, prompt in enumerate(prompts) if prompt.reward == PREFERENCE]
        verified = [i for i, prompt in enumerate(prompts) if prompt.reward != PREFERENCE]
        about: dict[str, float] = {}
        if verified:
            values[verified], valid[verified], about = self._verified(
                [prompts[i] for i in verified], [sampled[i] for i in verified]
            )
        if preferred:
            unfinished = [i for i in preferred if not sampled[i].complete]
            values[unfinished], valid[unfinished] = self._model.lowest, True
            asked = [i for i in preferred if sampled[i].complete]
            compared: dict[int, Comparison] = {}
            for i in asked:
                with contextlib.suppress(RubricError):  # a record's mistake is its own, and not the run's
                    compared[i] = comparison_of(prompts[i], sampled[i])
            judged = self._model(list(compared.values()))
            for i, each in zip(compared, judged, strict=True):
                values[i], valid[i] = each.reward or 0.0, each.reward is not None
            outcomes = Counter(each.outcome for each in judged) + Counter({NOT_SHOWN: len(asked) - len(compared)})
            outcomes["unfinished"] = len(unfinished)
            about |= {f"judge/{name}": count / len(preferred) for name, count in sorted(outcomes.items())}
        return values, valid, about

    def _verified(self, prompts: list[Prompt], sampled: list[Sampled]) -> tuple[list[float], list[bool], dict]:
        """Rewards may run for long, or fail: once, also where the judge is asked by all."""

        def find() -> tuple[list[float], list[bool], dict]:
            values, valid, about = score(self._runner, prompts, sampled)
            return values.tolist(), valid.tolist(), about

        return of_first(find) if self.by_all else find()


def comparison_of(prompt: Prompt, sampled: Sampled) -> Comparison:
    """Raises ValueError: a prompt without a reference; RubricError: a rubric that is none."""
    if not isinstance(prompt.truth, str):
        raise ValueError(f"{prompt.source}: expected a reference to compare with, found {type(prompt.truth).__name__}")
    text, weights = rubric_of(prompt.extra.get("rubric"))
    return Comparison(prompt.history or prompt.conversation, sampled.answer, prompt.truth, text, weights)
