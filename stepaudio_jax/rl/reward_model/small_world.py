"""Labelled comparisons of the miniature world: two replies to one dialogue, what its rule says of them, and why."""

from __future__ import annotations

import numpy as np

from stepaudio_jax import miniature
from stepaudio_jax.miniature.judging import ANSWERS, Facts, points, qualities
from stepaudio_jax.rl.reward_model.labelled import Labelled
from stepaudio_jax.rl.reward_model.rules import level, of_the_miniature
from stepaudio_jax.rl.reward_model.templates import Comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES

CARES = (miniature.Care(), miniature.Care(0.5, 0.5, 0.5), miniature.Care(0, 0, 0))
WRONG = 0.3
"""Of the replies, those with a wrong answer."""


def make_labelled(
    rng: np.random.Generator, *, kinds: tuple[str, ...] = (), max_events: int = 3, rubric_share: float = 0.5
) -> Labelled:
    """A comparison by a rubric or without one, of two replies that are careful to different degrees."""
    manner = miniature.MANNERS[int(rng.integers(len(miniature.MANNERS)))]
    kind = str(rng.choice(kinds)) if kinds and manner != "mood" else None
    made = miniature.make_dialogue(rng, kind, manner=manner, max_events=max_events)
    replies = []
    for care in (CARES[i] for i in rng.integers(len(CARES), size=2)):
        wrong = [answer for answer in ANSWERS[made.facts.kind] if answer != made.facts.answer]
        answer = str(rng.choice(wrong)) if rng.random() < WRONG else None
        replies.append(miniature.make_reply(rng, made.facts, care, answer=answer))
    ruled = bool(rng.random() < rubric_share)
    compared = Comparison(made.prompt, replies[0], replies[1], made.rubric if ruled else "")
    scores = [of_the_miniature(reply, compared) for reply in replies]
    decided = level(scores[0] - scores[1])
    critique = "\n".join(
        f"Reply {number} misses: {_missed(reply, made.facts, ruled)}" for number, reply in enumerate(replies, start=1)
    )
    return Labelled(compared, VALUES[LEVELS.index(decided)], "small world", decided, critique)


def _missed(reply: str, facts: Facts, ruled: bool) -> str:
    looked_at = points(reply, facts) if ruled else qualities(reply, facts)
    return " ".join(name.rstrip(".") + "." for name, met in looked_at.items() if not met) or "nothing."
