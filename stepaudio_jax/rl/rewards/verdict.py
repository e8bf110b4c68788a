"""A judge's own reward: does its verdict say what people have said?"""

from __future__ import annotations

from stepaudio_jax.rl.reward_model.verdicts import LEVELS, read_level
from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample


@accuracy("verdict", cheap=True)
def verdict(sample: Sample) -> bool:
    """Is the verdict in the reply's last line on the same side as the truth, one of the five levels? How much better or
    worse is not asked, for labels differ in that more than in anything.

    Raises:
      ValueError: a truth that is no level.
    """
    if sample.truth not in LEVELS:
        raise ValueError(f"truth: expected one of {', '.join(LEVELS)}, found {sample.truth!r}")
    said = read_level(sample.answer)
    return said is not None and _side(said) == _side(sample.truth)


def _side(level: str) -> int:
    at = LEVELS.index(level)  # type: ignore[arg-type]
    return (at > 2) - (at < 2)
