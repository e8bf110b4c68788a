"""Questions with a caption of their sound in the prompt, right or wrong: the small world's textual surrogate.

R1 §4.2 finds that a model taught by text reasons about a caption of the sound instead of the sound. Here a reply does
so where it begins "The caption says"; where the caption is of another scene, so that another answer follows from it,
such a reply is wrong, and one that listens is right.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stepaudio_jax.miniature.questions import Question, make_question
from stepaudio_jax.miniature.scenes import MAX_EVENTS, Scene
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human

TRIES = 20_000


@dataclasses.dataclass(frozen=True)
class Captioned(Question):
    """Attributes:
    contradicts: the caption is of another scene, and leads to another answer.
    misled: the answer that the caption leads to.
    """

    contradicts: bool = False
    misled: str = ""


def make_captioned(
    rng: np.random.Generator,
    kind: str,
    *,
    contradicts: bool,
    listens: bool = True,
    max_events: int = MAX_EVENTS,
) -> Captioned:
    """A question of a kind about a fresh scene, with a caption.

    Args:
      listens: whether the reply to be learnt reasons from the sound, or from the caption.

    Raises:
      ValueError: a dialogue, whose caption would stand in an earlier turn; as `make_question`.
    """
    if kind == "dialogue":
        raise ValueError("kind: expected questions of one turn, found dialogue")
    question = make_question(rng, kind, max_events=max_events)
    told = _another(rng, question, max_events) if contradicts else question
    (asked, reply), told_reply = question.conversation.turns, told.conversation.turns[-1]
    if not listens:
        think = (told_reply.think or "").replace("I hear:", "The caption says:")
        reply = assistant(told_reply.text, think=think)
    clip, words = asked.audio[0], asked.text
    prompt = human(Audio(clip.samples, clip.name), f"Caption: {caption(told.scene)}.\n{words}")
    return Captioned(
        kind, Conversation((prompt, reply)), question.answer, question.scene, contradicts, told.answer
    )


def caption(scene: Scene | None) -> str:
    """A scene in words: "loud low pure tone, soft noise burst"."""
    return ", ".join(event.description for event in scene.events) if scene else ""


def _another(rng: np.random.Generator, question: Question, max_events: int) -> Question:
    """The same words about another scene, with another answer."""
    for _ in range(TRIES):
        other = make_question(rng, question.kind, max_events=max_events, sound=False)
        if other.answer != question.answer and _words(other) == _words(question):
            return other
    raise ValueError(f"kind: found no scene for another answer to {_words(question)}")


def _words(question: Question) -> list[str]:
    turns: tuple[Turn, ...] = question.prompt.turns
    return [turn.text for turn in turns]
