"""A request on its way: what its prompt is, how far its keys and values are, what it has written."""

from __future__ import annotations

import dataclasses

import numpy as np

from stepaudio_jax.inference.types import Request
from stepaudio_jax.inference.writer import ReplyWriter


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A request that has been rendered and checked: all of its work that needs no device.

    Attributes:
      token_ids: of the prompt, int32 [tokens].
      chunks, spans, sounds: of its sound: samples, (start, count) of their tokens, and digests.
      identities: of the prompt's tokens, see `pages.identities`.
      prefix: the text of the assistant turn that the prompt ends with.
      limit: most tokens of the reply: what was asked for, and what there is room for.
    """

    request: Request
    token_ids: np.ndarray
    chunks: tuple[np.ndarray, ...]
    spans: tuple[tuple[int, int], ...]
    sounds: tuple[bytes, ...]
    identities: np.ndarray
    prefix: str
    stop_ids: tuple[int, ...]
    limit: int


@dataclasses.dataclass(eq=False)
class Row:
    """A request that runs or waits to.

    Attributes:
      names: of its full pages, as far as they are known.
      pages: it holds, in order, in `lane`.
      computed: so many of its tokens have their keys and values in them.
      place: among the lane's rows, while it runs.
      chunks_heard: chunks of sound it has reported as encoded.
    """

    prepared: Prepared
    writer: ReplyWriter
    names: list[bytes] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    computed: int = 0
    lane: int = 0
    place: int = -1
    chunks_heard: int = 0

    @property
    def request(self) -> Request:
        return self.prepared.request

    @property
    def id(self) -> str:
        return self.prepared.request.id

    @property
    def length(self) -> int:
        """Tokens of prompt and reply so far."""
        return len(self.prepared.token_ids) + len(self.writer.token_ids)

    @property
    def decodes(self) -> bool:
        """All but its last token are in the cache; the last is what a decode step takes."""
        return self.computed == self.length - 1

    @property
    def last_token(self) -> int:
        return self.writer.token_ids[-1] if self.writer.token_ids else int(self.prepared.token_ids[-1])

    @property
    def remaining(self) -> int:
        """Tokens of the reply that it may still write."""
        return self.prepared.limit - len(self.writer.token_ids)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids of prompt and reply from `start` to `stop`."""
        prompt = self.prepared.token_ids
        reply = self.writer.token_ids[max(start - len(prompt), 0) : max(stop - len(prompt), 0)]
        return np.concatenate([prompt[start:stop], np.asarray(reply, np.int32)])

    def all_identities(self) -> np.ndarray:
        written = np.zeros((len(self.writer.token_ids), 2), np.uint64)
        written[:, 0] = self.writer.token_ids
        return np.concatenate([self.prepared.identities, written])
