"""The reward of audio questions: mostly for the right answer, a little for having reasoned (R1 §4.2)."""

from __future__ import annotations

from collections.abc import Callable

from stepaudio_jax.rl.rewards.registry import register
from stepaudio_jax.rl.rewards.sample import Sample


def has_reasoning(sample: Sample) -> bool:
    """Is the think block closed, with text in it that can be seen? (RECIPE §3)"""
    return sample.complete and any(letter.isprintable() and not letter.isspace() for letter in sample.think)


@register("audio", wraps="accuracy", cheap=True)
def audio(
    sample: Sample,
    *,
    accuracy: Callable[[Sample], float],
    accuracy_weight: float = 0.8,
    reasoning_weight: float = 0.2,
) -> float:
    """0.8 · accuracy + 0.2 · 1[reasoning present]; a truncated reply has accuracy 0 and is not looked at for more.

    Args:
      accuracy: in a `Reward` the name of another reward, or a `Reward` with options.
    """
    right = 0.0 if sample.truncated else accuracy(sample)
    return accuracy_weight * right + reasoning_weight * has_reasoning(sample)
