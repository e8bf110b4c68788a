"""r = φ(g): both orders of a reply and its reference judged, and what the two verdicts come to (RECIPE §3)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.judges import Judge, Question
from stepaudio_jax.rl.reward_model.templates import Comparison, comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, Level, read_level, value

READ, CONTRADICTION, UNREADABLE, NO_ANSWER = "read", "contradiction", "unreadable", "no answer"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What became of a comparison.

    Attributes:
      reward: −1 to 1 with the usual φ; None where there is none, which is never a 0.
      levels: of the reply against the reference, and with the two exchanged, of the reference against the reply.
      outcome: "read"; "contradiction", each order preferring the other one, whose reward is 0; "unreadable" or
        "no answer", of either order.
      critiques: what the judge wrote; None: nothing.
    """

    reward: float | None
    levels: tuple[Level | None, Level | None]
    outcome: str
    critiques: tuple[str | None, str | None]


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
        asked: list[Question] = []
        for each in comparisons:
            for order in ((each.reply, each.reference), (each.reference, each.reply)):
                prompt = comparison(each.history, *order, each.rubric, sound=self._sound)
                asked.append(Question(prompt, self._most))
        said = [reply.text for reply in self.judge(asked)]
        judged = [self._judged(said[at], said[at + 1]) for at in range(0, len(said), 2)]
        self.outcomes.update(each.outcome for each in judged)
        return judged

    def rewards(self, comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
        """(float32 rewards, which of them are any)."""
        found = [each.reward for each in self(comparisons)]
        return np.array([r or 0.0 for r in found], np.float32), np.array([r is not None for r in found], bool)

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
