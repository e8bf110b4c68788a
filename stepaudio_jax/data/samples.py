"""One dialogue of a data set, its sound loaded."""

from __future__ import annotations

import dataclasses

from stepaudio_jax.text import Conversation


class RecordError(ValueError):
    """A record that cannot be used; the message is one line: where it stands, what was expected and found."""


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
