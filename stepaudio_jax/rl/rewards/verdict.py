"""A judge's own reward: does its verdict say what people have said?"""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample


@accuracy("verdict", cheap=True)
def verdict(sample: Sample) -> bool:
    """Is the verdict in the reply's last line on the same side as the truth, one of the five levels? How much better or
    worse is not asked, for labels differ in that more than in anything.

    Raises:
      ValueError: a truth that is no level.
    """
    from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, read_level  # numpy, which workers do without

    sides = {level: (value > 0) - (value < 0) for level, value in zip(LEVELS, VALUES, strict=True)}
    if sample.truth not in sides:
        raise ValueError(f"truth: expected one of {', '.join(LEVELS)}, found {sample.truth!r}")
    said = read_level(sample.answer)
    return said is not None and sides[said] == sides[sample.truth]
