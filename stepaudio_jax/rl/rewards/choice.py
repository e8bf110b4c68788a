"""Multiple choice as a reward: see `stepaudio_jax.scoring.choice`."""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.scoring.choice import is_right


@accuracy("choice", cheap=True)
def choice(sample: Sample) -> bool:
    """Does the answer state the true option? The record's column `choices` holds the options, if there are any.

    Raises:
      ValueError: a truth that is none of the options, or could be two; options that are no texts or not different.
    """
    return is_right(sample.answer, sample.truth, sample.extra.get("choices"))
