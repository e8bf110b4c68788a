"""mp3: how many frames a file holds, whatever its header says, and where joined files begin (ISO 11172-3, 13818-3).

libsndfile believes the number in a file's first frame, which of joined files is that of the first of them, or guesses
one from the bit rate of the first frame.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import BinaryIO

import numpy as np

from stepaudio_jax.audio.errors import DamagedError

BLOCK = 1 << 20
MARGIN = 64
"""Bytes of a frame that are looked at: its header, and the tag that says how many frames follow."""

MAX_JOINED = 1000
MAX_GAPS = 4096
"""Places where a frame does not begin where the one before ended."""


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By the second and third byte of a header: bytes of its frame, 0 for what is none, and samples in it."""
    word = np.arange(1 << 16)
    version, layer = word >> 11 & 3, word >> 9 & 3  # version 0: 2.5, 2: 2, 3: 1; layer 3: I, 2: II, 1: III
    kbits, rate, padding = word >> 4 & 15, word >> 2 & 3, word >> 1 & 1
    by_layer = np.zeros((2, 4, 16), np.int64)
    by_layer[0, 3, 1:15] = np.arange(1, 15) * 32
    by_layer[0, 2, 1:15] = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
    by_layer[0, 1, 1:15] = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    by_layer[1, 3, 1:15] = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
    by_layer[1, 1:3, 1:15] = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    bits = by_layer[(version != 3).astype(int), layer, kbits] * 1000
    hertz = np.array([44_100, 48_000, 32_000, 1])[rate] >> np.array([2, 0, 1, 0])[version]
    samples = np.where(layer == 3, 384, np.where((layer == 1) & (version != 3), 576, 1152))
    slots = np.where(layer == 3, 12, samples // 8) * bits // np.maximum(hertz, 1) + padding
    lengths = np.where(layer == 3, 4 * slots, slots)  # a slot of layer I has four bytes
    is_header = (word >> 13 == 7) & (version != 1) & (rate != 3) & (bits > 0)
    return np.where(is_header, lengths, 0).astype(np.int32), samples.astype(np.int32)


@functools.cache
def _lengths_by_header() -> list[int]:
    return _tables()[0].tolist()  # of a list, Python looks one up in a third of the time


@dataclasses.dataclass
class Link:
    """One of the mp3 files in a file.

    Attributes:
      runs: bytes of its frames, one after another; between two runs lie tags, or what is broken.
      declared: frames that it says it has, in a first frame without sound; None where it does not.
      frames, samples: that it has.
      header: 4 bytes, of the first frame with sound.
    """

    runs: list[range] = dataclasses.field(default_factory=list)
    tag_bytes: int = 0
    declared: int | None = None
    frames: int = 0
    samples: int = 0
    header: bytes = b""

    @property
    def is_counted(self) -> bool:
        """Whether as many frames follow as the first one says: within one, which some count for itself."""
        return self.declared is not None and self.frames <= self.declared + 1

    def pieces(self) -> list[bytes | range]:
        """Its bytes, with a first frame that says how many follow."""
        if self.is_counted or not self.header or self.header[1] >> 1 & 3 != 1:  # layers I and II have no such frame
            return [*self.runs]
        first = self.runs[0]
        return [_counting_frame(self.header, self.frames), first[self.tag_bytes :], *self.runs[1:]]


def mp3_samples(stream: BinaryIO) -> int | None:
    """Samples in the frames of an mp3 whose first frame does not say how many there are; None for one that does."""
    links = find_links(stream)
    return None if links and links[0].declared is not None else sum(link.samples for link in links)


def find_links(stream: BinaryIO) -> list[Link]:
    """The mp3 files in a file: one as a rule, several where they were joined. Leaves the stream anywhere.

    Raises:
      DamagedError: too many files, or frames that do not follow one another.
    """
    links: list[Link] = []
    at = gaps = 0
    while True:
        stream.seek(at)
        data = stream.read(BLOCK + MARGIN)
        is_last = len(data) < BLOCK + MARGIN
        limit = len(data) if is_last else BLOCK
        block = _Block(data, limit)
        end, broken = block.follow()
        gaps += broken
        if gaps > MAX_GAPS:
            raise DamagedError(f"broken, the frames of an mp3 do not follow one another in more than {MAX_GAPS} places")
        block.add_to(links, at)
        if is_last and end <= 0:
            return links
        at += end or limit
        if is_last and end >= limit:
            return links


class _Block:
    """Some bytes of a file, and the frames that begin before `limit` of them.

    Attributes:
      starts: of the frames, those that follow one another from the first byte on, tags and broken bytes left out.
    """

    def __init__(self, data: bytes, limit: int):
        self.data, self.limit = data + bytes(MARGIN), limit
        self._end = len(data) if len(data) < BLOCK + MARGIN else 2**62  # of the file
        self.octets = np.frombuffer(self.data, np.uint8)
        self.starts: list[int] = []

    def follow(self) -> tuple[int, int]:
        """Goes from frame to frame. Returns where the last one ends, or a tag behind it, 0 where there is none; and how
        often a frame did not begin where the one before ended."""
        data, starts = self.data, self.starts
        lengths = _lengths_by_header()
        at = gaps = 0
        while at < self.limit:
            length = lengths[data[at + 1] << 8 | data[at + 2]] if data[at] == 0xFF else 0
            if not length:
                gaps += 1
                if size := _tag_size(data, at):
                    at += size
                    continue
                if gaps > MAX_GAPS or (following := self._next_sure(at)) is None:
                    break
                at = following
                continue
            if at + length > self._end:
                break
            starts.append(at)
            at += length
        return at, gaps

    def _next_sure(self, at: int) -> int | None:
        """Where behind `at` a frame begins whose end is the beginning of another."""
        following = int(np.searchsorted(self._sure, at))
        return int(self._sure[following]) if following < len(self._sure) else None

    @functools.cached_property
    def _sure(self) -> np.ndarray:
        words = self.octets[1 : self.limit + 1].astype(np.uint16) << 8 | self.octets[2 : self.limit + 2]
        lengths = np.where(self.octets[: self.limit] == 0xFF, _tables()[0][words], 0)
        starts = np.flatnonzero(lengths)
        ends = starts + lengths[starts]
        return starts[(ends >= self.limit) | (lengths[np.minimum(ends, self.limit - 1)] > 0)]

    def add_to(self, links: list[Link], at: int) -> None:
        """Adds the frames to the last link, or to new ones; `at` is where the bytes lie in the file."""
        if not self.starts:
            return
        starts = np.array(self.starts)
        words = self.octets[starts + 1].astype(np.uint16) << 8 | self.octets[starts + 2]
        lengths, samples = (table[words] for table in _tables())
        tags = self._tags(starts)
        if len(links) + len(tags) > MAX_JOINED:
            raise DamagedError(f"more than {MAX_JOINED} mp3 files, one after another")
        edges = sorted({0, *tags})
        for first, stop in zip(edges, [*edges[1:], len(starts)], strict=True):
            if first in tags or not links:
                links.append(Link())
            link, skipped = links[-1], first in tags
            if skipped:
                link.declared, link.tag_bytes = tags[first] or None, int(lengths[first])
            if not link.header and first + skipped < stop:
                begin = int(starts[first + skipped])
                link.header = self.data[begin : begin + 4]
            link.frames += stop - first - skipped
            link.samples += int(samples[first + skipped : stop].sum())
            _add_runs(link.runs, at + starts[first:stop], lengths[first:stop])

    def _tags(self, starts: np.ndarray) -> dict[int, int]:
        """Which of the frames have a tag in them instead of sound, and how many frames it says follow; 0: unknown."""
        one, three = self.octets[starts + 1], self.octets[starts + 3]
        is_first, is_mono = one >> 3 & 3 == 3, three >> 6 == 3
        info = 4 + np.where(is_first, np.where(is_mono, 17, 32), np.where(is_mono, 9, 17))
        found = {}
        for offset, names in ((info, (b"Xing", b"Info")), (info + 2, (b"Xing", b"Info")), (36, (b"VBRI",))):
            words = self.octets[(starts + offset)[:, None] + np.arange(4)].view(">u4")[:, 0]
            for name in names:
                for frame in np.flatnonzero(words == int.from_bytes(name, "big")).tolist():
                    begin = int(starts[frame]) + int(np.broadcast_to(offset, len(starts))[frame])
                    has_count = name == b"VBRI" or self.data[begin + 7] & 1
                    begin += 14 if name == b"VBRI" else 8
                    found[frame] = int.from_bytes(self.data[begin : begin + 4], "big") if has_count else 0
        return found


def _add_runs(runs: list[range], starts: np.ndarray, lengths: np.ndarray) -> None:
    ends = starts + lengths
    breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    for first, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(starts)], strict=True):
        begin, end = int(starts[first]), int(ends[stop - 1])
        if runs and runs[-1].stop == begin:
            runs[-1] = range(runs[-1].start, end)
        else:
            runs.append(range(begin, end))


def _tag_size(data: bytes, at: int) -> int:
    """Bytes of an ID3v2 or APE tag that begins there; 0 for none."""
    head = data[at : at + 32]
    if head[:3] == b"ID3" and len(head) >= 10:
        return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + int.from_bytes(head[12:16], "little")
    return 128 if head[:3] == b"TAG" else 0


def _counting_frame(header: bytes, frames: int) -> bytes:
    """A frame like another of layer III, but without sound: it says how many frames follow (the "Info" tag)."""
    second, is_mono, is_first = header[1] | 1, header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    thirds = [kbits << 4 | header[2] & 0x0C for kbits in range(1, 15)]
    sizes = {int(_tables()[0][second << 8 | third]): third for third in thirds}
    size = min(size for size in sizes if size >= MARGIN)
    info = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    tag = bytes([0xFF, second, sizes[size], header[3]]) + bytes(info)
    return (tag + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")).ljust(size, b"\0")
