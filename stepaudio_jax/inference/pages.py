"""Who holds which page of the key/value cache, and which full pages may be used again by whoever asks the same.

A page's name is a hash of everything up to its end: token ids, and for sound what is heard (its content, not where it
came from). So equal beginnings share pages, whoever sent them and whenever: the samples of one prompt, or the next turn
of a dialogue. Host memory only; the arrays are the device's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64


def page_names(identities: UInt64[np.ndarray, "T 2"], page_size: int, *, after: Sequence[bytes] = ()) -> list[bytes]:
    """Names of the full pages of a sequence, the first of which are known as `after` already.

    Args:
      identities: of each token, see `identities`.
    """
    names = list(after)
    for page in range(len(names), len(identities) // page_size):
        before = names[-1] if names else b""
        own = np.ascontiguousarray(identities[page * page_size : (page + 1) * page_size]).tobytes()
        names.append(hashlib.blake2b(before + own, digest_size=16).digest())
    return names


def identities(
    token_ids: np.ndarray, spans: Sequence[tuple[int, int]] = (), sounds: Sequence[bytes] = ()
) -> UInt64[np.ndarray, "T 2"]:
    """What each token of a prompt is: its id, or which place of which sound.

    Args:
      spans: (start, count) of the tokens of each chunk of sound.
      sounds: a digest of 16 bytes of each chunk.
    """
    out = np.zeros((len(token_ids), 2), np.uint64)
    out[:, 0] = token_ids
    for (start, count), digest in zip(spans, sounds, strict=True):
        first, second = np.frombuffer(digest, np.uint64)
        out[start : start + count, 0] = first + np.arange(count, dtype=np.uint64)  # wraps around
        out[start : start + count, 1] = second | np.uint64(1)  # never that of a token id
    return out


@dataclasses.dataclass
class _Page:
    holders: int = 0
    name: bytes | None = None


class PagePool:
    """The pages of one pool. A page is free, held by one row or more, or kept for its content with no holder; the last
    go, the longest unused first, when no free one is left."""

    def __init__(self, pages: int, page_size: int, *, keep: bool = True):
        """
        Args:
          keep: let full pages be found again.
        """
        self.total, self.page_size, self.keep = pages, page_size, keep
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # no holder, known by name; the longest unused first
        self._named: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken: the free ones and those kept with no holder."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        return self.total - self.available

    @property
    def kept(self) -> int:
        return len(self._kept)

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The pages of the longest known beginning; they are not held yet."""
        found = []
        for name in names:
            if (page := self._named.get(name)) is None:
                break
            found.append(page)
        return found

    def unheld(self, pages: Sequence[int]) -> int:
        """How many of these have no holder, and so are among the available ones."""
        return sum(self._pages[page].holders == 0 for page in pages)

    def hold(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._kept.pop(page, None)
            self._pages[page].holders += 1

    def take(self, count: int) -> list[int]:
        """Pages for a row alone. Raises ValueError where there are not so many: ask `available` first."""
        if count > self.available:
            raise ValueError(f"pages: {count} asked for, {self.available} available")
        pages = []
        for _ in range(count):
            if not self._free:
                page, _ = self._kept.popitem(last=False)
                self._forget(page)
                self._free.append(page)
            pages.append(self._free.pop())
        self.hold(pages)
        return pages

    def name(self, page: int, name: bytes) -> None:
        """A held page is full: it can be found from now on, unless another with the same content is."""
        if self.keep and name not in self._named and self._pages[page].name is None:
            self._named[name] = page
            self._pages[page].name = name

    def release(self, pages: Sequence[int]) -> None:
        """A row lets go of its pages. The end of a sequence is forgotten before its beginning."""
        for page in reversed(pages):
            entry = self._pages[page]
            entry.holders -= 1
            if entry.holders:
                continue
            if entry.name is None:
                self._free.append(page)
            else:
                self._kept[page] = None

    def clear(self) -> None:
        """Forgets all content: the weights have changed. Held pages stay held."""
        for page in list(self._kept):
            self._free.append(page)
        self._kept.clear()
        for page in list(self._named.values()):
            self._forget(page)

    def _forget(self, page: int) -> None:
        name, self._pages[page].name = self._pages[page].name, None
        if name is not None:
            del self._named[name]
