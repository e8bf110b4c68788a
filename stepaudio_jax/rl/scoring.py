"""Rewards of a rollout, and what there is to say about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from stepaudio_jax.rl.rewards import RewardRunner, Sample, to_arrays
from stepaudio_jax.rl.rollout import Prompt, Sampled

Score = Callable[[Sequence[Prompt], Sequence[Sampled]], tuple[np.ndarray, np.ndarray, dict[str, float]]]
"""(rewards [N] float32, which of them there are [N] bool, what there is to say) of replies, each with its prompt."""


def score(
    runner: RewardRunner, prompts: Sequence[Prompt], sampled: Sequence[Sampled]
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(rewards [N] float32, which of them there are [N] bool, shares of errors and of notes by kind) of replies.

    Args:
      prompts: of each reply.
    """
    samples = [
        Sample(each.think, each.answer, each.complete, each.truncated, prompt.truth, prompt.extra)
        for prompt, each in zip(prompts, sampled, strict=True)
    ]
    scored = runner.score(samples, [prompt.reward for prompt in prompts])
    kinds = Counter(each.kind for each in scored if each.kind is not None)
    notes = Counter(note for each in scored for note in each.notes)
    values, valid = to_arrays(scored)
    shares = {f"reward_errors/{kind}": count / len(scored) for kind, count in sorted(kinds.items())}
    shares |= {f"reward_notes/{note}": count / len(scored) for note, count in sorted(notes.items())}
    return values, valid, shares
