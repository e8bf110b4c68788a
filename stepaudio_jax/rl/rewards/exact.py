"""Exact match of normalised text; and, of the miniature world, the answer that a reply names in whatever words."""

from __future__ import annotations

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.scoring.words import is_right as is_right_in_words


@accuracy("exact", cheap=True)
def exact(sample: Sample) -> bool:
    """Is the answer, normalised, as a whole or in what it says is its answer, the truth, or one of several in a list?

    Raises:
      ValueError: no truth, or a blank one.
    """
    return is_right_in_words(sample.answer, sample.truth)


@accuracy("named", cheap=True)
def named(sample: Sample) -> bool:
    """Does the reply name the truth and no other answer that a question of its kind can have? Of the miniature world;
    the kind is in the record's column `kind`.

    Raises:
      ValueError: a kind that has no such answers.
    """
    from stepaudio_jax.miniature.judging import ANSWERS, Facts, is_right  # numpy, which workers do without

    if (kind := sample.extra.get("kind")) not in ANSWERS:
        raise ValueError(f"kind: expected one of {', '.join(ANSWERS)}, found {kind!r}")
    return is_right(sample.answer, Facts(kind=str(kind), answer=str(sample.truth)))
