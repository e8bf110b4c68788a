"""Comparing by a rule instead of a judge, where what is good is known: the miniature world."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from stepaudio_jax import miniature
from stepaudio_jax.rl.reward_model.compare import NOT_SHOWN, READ, Judged
from stepaudio_jax.rl.reward_model.templates import Comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, Level, without_think

BETTER, MUCH_BETTER = 0.1, 0.35
"""Differences of two scores, from 0 to 1, from which one reply is better than another, and much better."""

EPSILON = 1e-9

Rule = Callable[[str, Comparison], float]
"""How good a reply is, 0 to 1. Raises ValueError where the comparison does not say what it would have to know."""


class ByRule:
    """Both orders agree, for each is the other with its sign turned."""

    def __init__(self, rule: Rule, values: tuple[float, ...] = VALUES):
        self._rule, self._values = rule, values
        self.outcomes: collections.Counter[str] = collections.Counter()

    @property
    def lowest(self) -> float:
        return self._values[0]

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judged]:
        judged = [self._one(each) for each in comparisons]
        self.outcomes.update(each.outcome for each in judged)
        return judged

    def _one(self, asked: Comparison) -> Judged:
        try:
            difference = self._rule(asked.reply, asked) - self._rule(asked.reference, asked)
        except ValueError:
            return Judged(None, (None, None), NOT_SHOWN, (None, None))
        forth, back = level(difference), level(-difference)
        return Judged(self._values[LEVELS.index(forth)], (forth, back), READ, (None, None))


def level(difference: float) -> Level:
    """Of the five, by how much one reply's score is above the other's."""
    steps = sum(abs(difference) > bound - EPSILON for bound in (BETTER, MUCH_BETTER))
    return LEVELS[2 + (steps if difference > 0 else -steps)]


def of_the_miniature(reply: str, asked: Comparison) -> float:
    """By the rubric where there is one, else as people of the miniature world prefer; the facts are the dialogue's."""
    facts, reply = miniature.facts_of(asked.history.extra), without_think(reply)
    return miniature.by_rubric(reply, facts) if asked.rubric else miniature.by_preference(reply, facts)
