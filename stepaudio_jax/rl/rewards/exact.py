"""Exact match of normalised text."""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.rl.rewards.text import accepted, normalise


@accuracy("exact", cheap=True)
def exact(sample: Sample) -> bool:
    """Is the whole answer, normalised, the truth, or one of several given as a list?

    Raises:
      ValueError: no truth, or a blank one.
    """
    return normalise(sample.answer) in {normalise(str(answer)) for answer in accepted(sample.truth)}
