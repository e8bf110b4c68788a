"""Mathematical answers as a reward: see `stepaudio_jax.scoring.maths`."""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy, note
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.scoring.maths import Verdict, judge


@accuracy("maths", seconds=120.0)  # more than it takes to find that its own process stands still
def maths(sample: Sample) -> bool:
    """Is the answer's expression equal to the truth's, or to that of one of several given as a list?

    One that cannot be evaluated within limits is wrong, and noted as "over_limits".

    Raises:
      ValueError: a truth without an expression, or one that cannot be evaluated.
      ModuleNotFoundError: math-verify is not installed.
    """
    verdict = judge(sample.answer, sample.truth)
    if verdict is Verdict.OVER_LIMITS:
        note("over_limits")
    return verdict is Verdict.RIGHT
