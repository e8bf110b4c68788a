"""Ogg: whether all pages of a file are there and whole, and where joined files begin (RFC 3533).

libogg passes over a page that is damaged, and libsndfile reads the first of joined files only; neither says so.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from stepaudio_jax.audio.errors import DamagedError

BLOCK = 1 << 20
LONGEST_PAGE = 27 + 255 + 255 * 255

MAX_JOINED = 1000
MAX_STREAMS = 64
"""Logical streams beside one another."""

_CONTINUED, _FIRST, _LAST = 1, 2, 4

_REVERSED = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))
"""Ogg's CRC takes bits from the other end than zlib's."""

_AUDIO = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
"""How the first page of a stream of sound begins."""


class Pages(NamedTuple):
    """The pages of a file in order: where they lie, flags, number of their stream, and their number in it."""

    starts: np.ndarray
    flags: np.ndarray
    serials: np.ndarray
    numbers: np.ndarray


def links(stream: BinaryIO, size: int) -> list[range]:
    """The bytes of each of the Ogg files in a file: one as a rule, several where they were joined ("chained").

    Raises:
      DamagedError: a page is missing or damaged, or a stream of sound is not ended by a page that says so.
    """
    read = list(_read_pages(stream, size))
    if not read:
        raise DamagedError("truncated within the first page of an Ogg")
    pages = Pages(*(np.concatenate(part) for part in zip(*read, strict=True)))
    first = pages.flags & _FIRST > 0
    begins = np.flatnonzero(first & ~np.concatenate([[False], first[:-1]]))
    if len(begins) > MAX_JOINED:
        raise DamagedError(f"more than {MAX_JOINED} Ogg files, one after another")
    if not len(begins) or begins[0] != 0:
        raise DamagedError("an Ogg file without its beginning")
    ends = [*begins[1:].tolist(), len(first)]
    for begin, end in zip(begins.tolist(), ends, strict=True):
        _check_streams(stream, Pages(*(part[begin:end] for part in pages)))
    edges = [*pages.starts[begins].tolist(), size]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]


def _check_streams(stream: BinaryIO, pages: Pages) -> None:
    """Refuses a link whose pages are not all there."""
    serials = np.unique(pages.serials)
    if len(serials) > MAX_STREAMS:
        raise DamagedError(f"an Ogg of {len(serials)} streams, expected at most {MAX_STREAMS}")
    for serial in serials:
        own = np.flatnonzero(pages.serials == serial)
        if (np.diff(pages.numbers[own].astype(np.int64)) != 1).any():
            raise DamagedError("broken, pages of an Ogg are missing or damaged")
        stream.seek(int(pages.starts[own[0]]))
        page = stream.read(27 + 255 + 8)
        if page[27 + page[26] :].startswith(_AUDIO) and not pages.flags[own[-1]] & _LAST:
            raise DamagedError("truncated, an Ogg without the page that ends it")


def _read_pages(stream: BinaryIO, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """The pages, about a megabyte at a time."""
    at = 0
    while at < size:
        stream.seek(at)
        data = stream.read(BLOCK + LONGEST_PAGE + 4)
        octets = np.frombuffer(data, np.uint8)
        found, ends = _find_pages(octets)
        chain = _follow(found, ends, len(data) if at + len(data) >= size else BLOCK)
        if not chain:
            at += BLOCK
            continue
        starts, ends = found[chain], ends[chain]
        if ends[-1] > len(data):
            raise DamagedError("truncated within a page of an Ogg")
        _check_sums(data, starts, ends)
        fields = (octets[starts[:, None] + np.arange(first, first + 4)].view("<u4")[:, 0] for first in (14, 18))
        yield at + starts, octets[starts + 5], *fields
        at += max(int(ends[-1]), 1)


def _find_pages(octets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pages seem to begin, and to end by the lengths in them."""
    count = max(0, len(octets) - 26)  # of places where one could begin
    mask = np.ones(count, bool)
    for i, letter in enumerate(b"OggS"):
        mask &= octets[i : count + i] == letter
    found = np.flatnonzero(mask)
    sums = np.concatenate([[0], np.cumsum(octets, dtype=np.int64)])
    first = found + 27
    last = first + octets[found + 26]
    body = sums[np.minimum(last, len(octets))] - sums[np.minimum(first, len(octets))]
    return found, np.where(last > len(octets), len(octets) + 1, last + body)


def _follow(found: np.ndarray, ends: np.ndarray, stop: int) -> list[int]:
    """Which of the pages found follow one another, each where the last ended or behind, and begin before `stop`."""
    following = np.searchsorted(found, ends).tolist()
    chain, i, count = [], 0, int(np.searchsorted(found, stop))
    while i < count:
        chain.append(i)
        i = following[i]
    return chain


def _check_sums(data: bytes, starts: np.ndarray, ends: np.ndarray) -> None:
    """Compares each page with the CRC in it, which was made with zeros in its own place."""
    turned = np.frombuffer(bytearray(data.translate(_REVERSED)), np.uint8)
    places = starts[:, None] + np.arange(22, 26)
    expected = turned[places[:, ::-1]].reshape(-1, 4)
    turned[places] = 0
    view = turned.data
    sums = [zlib.crc32(view[start:end], 0xFFFFFFFF) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    if (np.array(sums, "<u4") ^ np.uint32(0xFFFFFFFF) != np.ascontiguousarray(expected).view("<u4")[:, 0]).any():
        raise DamagedError("broken, a page of an Ogg does not match its checksum")
