"""Numeric answers as a reward: see `stepaudio_jax.scoring.number`."""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.scoring.number import is_right


@accuracy("number", cheap=True)
def number(sample: Sample) -> bool:
    """Is the number that the answer states the truth, or one of several given as a list?

    The record's columns `tolerance` and `relative_tolerance` (of the truth) allow for a difference; without them it is
    none. 50 % is 1/2; with the column `percent` set, 50 and 50 % are the same.

    Raises:
      ValueError: a truth that is no number, or a tolerance below 0.
    """
    return is_right(
        sample.answer,
        sample.truth,
        tolerance=sample.extra.get("tolerance", 0),
        relative_tolerance=sample.extra.get("relative_tolerance", 0),
        percent=bool(sample.extra.get("percent", False)),
    )
