"""What a judge is: questions in, replies out, whatever answers them. What is asked is the asker's business."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from stepaudio_jax.text import Audio, Conversation


class JudgeError(RuntimeError):
    """A judge that cannot be asked at all, for a reason that its owner has to remove: a wrong key, address or model."""


@dataclasses.dataclass(frozen=True)
class Question:
    """Something to ask a judge.

    Attributes:
      conversation: ends with the human's turn.
      max_new_tokens: most tokens of the reply, its thinking included.
    """

    conversation: Conversation
    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0

    @property
    def digest(self) -> str:
        """Of all that is asked, sounds by their samples: SHA-256 in hexadecimal."""
        turns = [
            [turn.role, turn.think, [_part(part) for part in turn.parts]] for turn in self.conversation.turns
        ]  # fmt: skip
        asked = [turns, self.conversation.tools, self.max_new_tokens, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _part(part) -> list[str]:
    if isinstance(part, Audio):
        return ["audio", hashlib.sha256(part.samples.astype("<f4").tobytes()).hexdigest()]
    return ["text", part.text]


@dataclasses.dataclass(frozen=True)
class Reply:
    """A judge's reply, without its thinking; or why there is none, in a few words. Exactly one of the two."""

    text: str | None = None
    error: str | None = None

    def __post_init__(self):
        if (self.text is None) == (self.error is None):
            raise ValueError(f"reply: expected a text or an error, found {self.text!r} and {self.error!r}")


@dataclasses.dataclass
class Counters:
    """What a judge has done so far.

    Attributes:
      asked: questions, `recalled` those among them that were answered from a file.
      errors: questions without an answer, by the reason.
      retries: attempts beyond the first.
      tokens: of prompts and of replies, as far as is known.
    """

    asked: int = 0
    recalled: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Judge(Protocol):
    """Answers questions. One that has no answer says so in its place; none is left out.

    Attributes:
      name: of what answers; part of what a reply is remembered by.
    """

    name: str
    counters: Counters

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply to each. Raises JudgeError where there is no use in asking again."""
        ...
