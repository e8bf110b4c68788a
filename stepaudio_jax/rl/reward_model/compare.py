"""r = φ(g): both orders of a reply and its reference judged, and what the two verdicts come to (RECIPE §3)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stepaudio_jax.judges import Judge, Question
from stepaudio_jax.rl.reward_model.templates import Comparison, comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, Level, read_level, value

READ, CONTRADICTION, UNREADABLE = "read", "contradiction", "unreadable"
NO_ANSWER, NOT_SHOWN = "no answer", "not shown"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What became of a comparison.

    Attributes:
      reward: −1 to 1 with the usual φ; None where there is none, which is never a 0.
      levels: of the reply against the reference, and with the two exchanged, of the reference against the reply.
      outcome: "read"; "contradiction", each order preferring the other one, whose reward is 0; "unreadable" or
        "no answer", of either order; "not shown" where the judge could not be asked, as of sound that it cannot hear.
      critiques: what the judge wrote; None: nothing.
    """

    reward: float | None
    levels: tuple[Level | None, Level | None]
    outcome: str
    critiques: tuple[str | None, str | None]


class Compares(Protocol):
    """What replies are compared by with their references: a judge that is asked, or a rule.

    Attributes:
      lowest: φ of the lowest level.
    """

    @property
    def lowest(self) -> float: ...

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judged]: ...


class RewardModel:
    """A judge that compares replies with references."""

    def __init__(
        self,
        judge: Judge,
        *,
        values: tuple[float, ...] = VALUES,
        sound: bool = False,
        max_new_tokens: int = 1024,
    ):
        """
        Args:
          values: φ of the five levels, lowest first.
          sound: the judge hears the dialogues' clips; else it reads transcripts.

        Raises:
          ValueError: values that are not five, or do not rise from below 0 over 0 to above.
        """
        if len(values) != len(LEVELS) or sorted(values) != list(values) or not values[0] < values[2] == 0 < values[-1]:
            raise ValueError(f"values: expected five that rise from below 0 over 0 to above, found {values}")
        self.judge, self._values, self._sound, self._most = judge, values, sound, max_new_tokens
        self.outcomes: collections.Counter[str] = collections.Counter()

    @property
    def lowest(self) -> float:
        """φ of the lowest level."""
        return self._values[0]

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judged]:
        """Each in both orders. Exchanging reply and reference gives the same with the sign turned."""
        pairs = [self._questions(each) for each in comparisons]
        said = iter([reply.text for reply in self.judge([asked for pair in pairs for asked in pair])])
        judged = [
            self._judged(next(said), next(said)) if pair else Judged(None, (None, None), NOT_SHOWN, (None, None))
            for pair in pairs
        ]
        self.outcomes.update(each.outcome for each in judged)
        return judged

    def rewards(self, comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
        """(float32 rewards, which of them are any)."""
        found = [each.reward for each in self(comparisons)]
        return np.array([r or 0.0 for r in found], np.float32), np.array([r is not None for r in found], bool)

    def _questions(self, asked: Comparison) -> list[Question]:
        """Both orders; none, of what the judge cannot be shown."""
        orders = ((asked.reply, asked.reference), (asked.reference, asked.reply))
        try:
            prompts = [comparison(asked.history, *order, asked.rubric, sound=self._sound) for order in orders]
        except ValueError:
            return []
        return [Question(prompt, self._most) for prompt in prompts]

    def _judged(self, forth: str | None, back: str | None) -> Judged:
        said = (forth, back)
        if forth is None or back is None:
            return Judged(None, (None, None), NO_ANSWER, said)
        one, other = read_level(forth), read_level(back)
        if one is None or other is None:
            return Judged(None, (one, other), UNREADABLE, said)
        first, second = value(one, self._values), -value(other, self._values)
        if first * second < 0:
            return Judged(0.0, (one, other), CONTRADICTION, said)
        return Judged((first + second) / 2, (one, other), READ, said)
