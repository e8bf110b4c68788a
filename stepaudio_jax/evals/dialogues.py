"""The tiny model's manners: held-out dialogues of the small world, scored by rubric and by what people prefer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from stepaudio_jax import miniature
from stepaudio_jax.evals.evaluate import Item, evaluate
from stepaudio_jax.evals.miniature import GREEDY, HELD_OUT
from stepaudio_jax.inference import Completion, Request, SamplingParams
from stepaudio_jax.miniature.judging import is_right


def dialogue_items(
    count: int, *, seed: int = 0, kinds: Sequence[str] = (), max_events: int = 3, sampling: SamplingParams = GREEDY
) -> list[Item]:
    """So many fresh dialogues, their manners in turn, the same for the same seed."""
    items = []
    for index in range(count):
        rng = np.random.default_rng((HELD_OUT, seed, 9, index))
        manner = miniature.MANNERS[index % len(miniature.MANNERS)]
        kind = str(rng.choice(kinds)) if kinds and manner != "mood" else None
        made = miniature.make_dialogue(rng, kind, manner=manner, max_events=max_events)
        own = dataclasses.replace(sampling, seed=index)
        items.append(Item(Request(made.prompt, own, id=f"dialogue-{seed}-{index}"), made, manner))
    return items


def examine_dialogues(generate: Callable, count: int, **options) -> dict[str, float]:
    """Means over held-out dialogues, 0 to 1: the share of the rubric's points that replies meet, what people would say
    to them without one, the half of both together; and how many name the right answer, in whatever words.

    Args:
      options: of `dialogue_items`.
    """
    found = evaluate(generate, dialogue_items(count, **options), _both).answers
    replies = [(completion, item.truth) for item, completion, _ in found]
    rubric = float(np.mean([_score(miniature.by_rubric, *pair) for pair in replies]))
    preference = float(np.mean([_score(miniature.by_preference, *pair) for pair in replies]))
    return {
        "dialogue": (rubric + preference) / 2,
        "dialogue/rubric": rubric,
        "dialogue/preference": preference,
        "dialogue/right": float(np.mean([_score(lambda *pair: float(is_right(*pair)), *pair) for pair in replies])),
        "dialogue/words": float(np.mean([len(completion.answer.split()) for completion, _ in replies])),
    }


def _score(rule: Callable[..., float], completion: Completion, truth: miniature.Dialogue) -> float:
    """Of a reply whose thinking never ended nothing is heard."""
    return rule(completion.answer, truth.facts) if completion.complete else 0.0


def _both(completion: Completion, truth: miniature.Dialogue) -> float:
    return (_score(miniature.by_rubric, completion, truth) + _score(miniature.by_preference, completion, truth)) / 2
