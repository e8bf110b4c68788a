"""One dialogue of a data set, its sound loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.text import Conversation

MAX_CHARACTERS = 1 << 21
"""Of text in a dialogue: 32 for each of the 65,536 positions that the largest model has, where a token of prose has
three to five. What is longer could only be cut, but to find where, it would have to be tokenized, for minutes."""

MAX_EXTRA = 64 << 20
"""Characters of all that is kept beside a dialogue, which every copy of the record carries along."""


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
    """Raises RecordError: more text than any model can read, or more beside it than a record should carry, found before
    it is tokenized or stored."""
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
        size = sum(map(_size, (conversation.extra, *(turn.extra for turn in conversation.turns))))
        if size > MAX_EXTRA:
            names = ", ".join(sorted(conversation.extra, key=lambda name: -_size(conversation.extra[name]))[:3])
            raise RecordError(
                f"{where}: {size:,} characters in columns that are not read, more than {MAX_EXTRA:,} (MAX_EXTRA); "
                f"leave them out, the largest first: {names}"
            )


def _size(value: Any) -> int:
    """About how many characters a value has in JSON; without recursion, as it may be nested deeply."""
    size, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            size += sum(len(str(name)) for name in value)
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        else:
            size += len(value) if isinstance(value, str) else 8
    return size
