"""Rubrics point by point: which points a reply meets, each with its weight, instead of one verdict on all."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from stepaudio_jax.judges import Judge, Question
from stepaudio_jax.rl.reward_model.compare import NO_ANSWER, NOT_SHOWN, READ, UNREADABLE, Compares, Judged
from stepaudio_jax.rl.reward_model.templates import Comparison, by_points
from stepaudio_jax.rl.reward_model.verdicts import read_points


class ByPoints:
    """The weighted share of a rubric's points that a reply meets, less that of its reference: −1 to 1, and exchanging
    the two turns the sign. What has no rubric is compared as a whole."""

    def __init__(self, judge: Judge, whole: Compares, *, sound: bool = False, max_new_tokens: int = 1024):
        """
        Args:
          whole: compares what has no rubric.
          sound, max_new_tokens: as `RewardModel`.
        """
        self.judge, self._whole, self._sound, self._most = judge, whole, sound, max_new_tokens
        self.outcomes: collections.Counter[str] = collections.Counter()

    @property
    def lowest(self) -> float:
        return self._whole.lowest

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judged]:
        pointed = [i for i, each in enumerate(comparisons) if each.points]
        rest = [i for i, each in enumerate(comparisons) if not each.points]
        found: dict[int, Judged] = dict(zip(rest, self._whole([comparisons[i] for i in rest]), strict=True))
        pairs = {i: self._questions(comparisons[i]) for i in pointed}
        said = iter([reply.text for reply in self.judge([asked for pair in pairs.values() for asked in pair])])
        for i, pair in pairs.items():
            found[i] = self._judged(comparisons[i], (next(said), next(said)) if pair else None)
        self.outcomes.update(found[i].outcome for i in pointed)
        return [found[i] for i in range(len(comparisons))]

    def _questions(self, asked: Comparison) -> list[Question]:
        points = [text for text, _ in asked.points]
        try:
            prompts = [
                by_points(asked.history, reply, points, sound=self._sound) for reply in (asked.reply, asked.reference)
            ]
        except ValueError:
            return []
        return [Question(prompt, self._most) for prompt in prompts]

    def _judged(self, asked: Comparison, said: tuple[str | None, str | None] | None) -> Judged:
        def none(outcome: str) -> Judged:
            return Judged(None, (None, None), outcome, said or (None, None))

        if said is None:
            return none(NOT_SHOWN)
        if said[0] is None or said[1] is None:
            return none(NO_ANSWER)
        met = [read_points(text or "", len(asked.points)) for text in said]
        if met[0] is None or met[1] is None:
            return none(UNREADABLE)
        weights = [weight for _, weight in asked.points]
        reply, reference = (
            sum(weight for weight, kept in zip(weights, points or (), strict=True) if kept) / sum(weights)
            for points in met
        )
        return Judged(reply - reference, (None, None), READ, said)
