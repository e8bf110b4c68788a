"""Which encoded chunks of sound lie where on the device: each distinct chunk is encoded once, while there is room."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from stepaudio_jax.audio import lengths
from stepaudio_jax.audio.chunks import LONGEST_CUT

ROWS = int(lengths.adaptor_frames(LONGEST_CUT))
"""Features of the longest chunk: what an entry of the cache holds."""


def digest(chunk: np.ndarray) -> bytes:
    """16 bytes that name a chunk by its samples."""
    return hashlib.blake2b(np.ascontiguousarray(chunk, np.float32).tobytes(), digest_size=16).digest()


class SoundCache:
    """Places of the feature cache by content, the longest unused given away first. Host memory only."""

    def __init__(self, entries: int):
        self.entries = entries
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self.encoded = self.found = 0

    def __contains__(self, name: bytes) -> bool:
        return name in self._places

    def place(self, name: bytes) -> int:
        """Where a chunk's features lie; it counts as used."""
        self._places.move_to_end(name)
        return self._places[name]

    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        """Those to be encoded, each once; the others are marked as used, so that they outlast what comes now.

        Raises:
          ValueError: more distinct chunks than there are entries.
        """
        distinct = list(dict.fromkeys(names))
        if len(distinct) > self.entries:
            raise ValueError(f"chunks of sound: at most {self.entries} at once, found {len(distinct)}")
        absent = [name for name in distinct if name not in self._places]
        for name in distinct:
            if name in self._places:
                self._places.move_to_end(name)
        self.found += len(distinct) - len(absent)
        return absent

    def enter(self, name: bytes) -> int:
        """A place for a chunk that is about to be encoded."""
        place = len(self._places) if len(self._places) < self.entries else self._places.popitem(last=False)[1]
        self._places[name] = place
        self.encoded += 1
        return place

    def clear(self) -> None:
        """Forgets all: the weights have changed."""
        self._places.clear()
