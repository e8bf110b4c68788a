"""One dialogue of a data set, its sound loaded."""

from __future__ import annotations

import dataclasses

from stepaudio_jax.text import Conversation

MAX_CHARACTERS = 1 << 21
"""Of text in a dialogue: 32 for each of the 65,536 positions that the largest model has, where a token of prose has
three to five. What is longer could only be cut, but to find where, it would have to be tokenized, for minutes."""


def printable(text: str, longest: int = 400) -> str:
    """One line that is safe on a terminal: what a record says of itself may be long, or control it."""
    line = " ".join(text[: 4 * longest].split())
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return line if len(line) <= longest else line[:longest] + "…"


class RecordError(ValueError):
    """A record that cannot be used; the message is one line: where it stands, what was expected and found."""

    def __init__(self, message: str):
        super().__init__(printable(message, longest=1000))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Attributes:
    conversation: the dialogue; for preference data, ending in the better reply.
    rejected: the same dialogue ending in the worse reply.
    where: the record's place in its source, "file:line", for messages.
    """

    conversation: Conversation
    rejected: Conversation | None = None
    where: str = "sample"


def check_size(sample: Sample, where: str) -> None:
    """Raises RecordError: more text than any model can read, found before it is tokenized."""
    for conversation in (sample.conversation, sample.rejected):
        if conversation is None:
            continue
        size = len(conversation.tools or "")
        size += sum(len(turn.role) + len(turn.think or "") + len(turn.text) for turn in conversation.turns)
        if size > MAX_CHARACTERS:
            raise RecordError(
                f"{where}: {size:,} characters of text, more than the {MAX_CHARACTERS:,} of a dialogue that can be "
                "read (MAX_CHARACTERS); split it, or leave it out"
            )
