"""How much sound the chunks of a container promise. libsndfile silently reads what is there, so it is checked apart.

Formats whose header has fixed places are in fixed_headers.py; FLAC, Ogg and mp3, made of frames or pages, are each in a
file of its own. Neither IRCAM, PAF nor PVF says how long it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

from stepaudio_jax.audio import fixed_headers
from stepaudio_jax.audio.errors import DamagedError
from stepaudio_jax.audio.files import find
from stepaudio_jax.audio.fixed_headers import Promise
from stepaudio_jax.audio.mp3 import mp3_samples

__all__ = ["check_header", "joined_at", "missing_bytes", "mp3_samples", "pieces"]

MAX_CHUNKS = 4096
"""Before the sound: files have a handful, and a megabyte can hold a hundred thousand empty ones."""

_STREAMED = 0x7FFFF000
"""Sizes from here on were written before the length was known: 0xFFFFFFFF by most, 0x7FFFF000 and more by sox."""

_STREAMED_64 = 1 << 62
"""The same in 64 bits: 2⁶³ − 1 or 2⁶⁴ − 1."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class TooManyChunks(DamagedError):
    """So many chunks before the sound that nobody looks further."""


def check_header(stream: BinaryIO, size: int) -> None:
    """Refuses a file of `size` bytes that lacks what its header promises, or that another follows. A streamed file,
    whose header was never completed, promises nothing. Leaves the stream at its start.

    Raises:
      DamagedError: why.
    """
    if missing := _missing(_promise(stream), size):
        raise DamagedError(f"truncated, {missing} bytes of sound that its header promises are missing")
    if (at := joined_at(stream, size)) is not None:
        raise DamagedError(f"another file begins at byte {at}, as if two were joined: send each by itself")


def missing_bytes(stream: BinaryIO, size: int) -> int:
    """Bytes of sound that the header of a file of `size` bytes promises and the file lacks; 0 where it promises none,
    or too much comes before. Leaves the stream at its start."""
    try:
        return _missing(_promise(stream), size)
    except TooManyChunks:
        return 0
    finally:
        stream.seek(0)


def _missing(promised: Promise | None, size: int) -> int:
    return 0 if promised is None else max(0, promised.start + promised.size - size)


def joined_at(stream: BinaryIO, size: int) -> int | None:
    """Where behind its end another file of the same kind begins, as if by `cat a.wav b.wav`: only the first would be
    read. Leaves the stream at its start."""
    head, promised = _head(stream), _promise(stream)
    ends = []
    if head[:4] == b"RF64" and head[12:16] == b"ds64":
        ends = [8 + struct.unpack("<Q", head[20:28])[0]]
    elif (order := _riff_order(head)) is not None:
        ends = [8 + struct.unpack(f"{order}I", head[4:8])[0]]
    elif head[:16] == _W64_RIFF:
        ends = [struct.unpack("<Q", head[16:24])[0]]
    elif head[4:8] == b"ftyp" or head[:16] == _ASF:
        return find(stream, head[:16], 16, size)
    elif promised is not None:
        ends = [promised.start + promised.size]
    found = None
    for end in ends:
        for at in sorted({end, end + 1, -(-end // 8) * 8}):  # a VOC has a byte more, others are filled up
            if 16 <= at < size and found is None:
                stream.seek(at)
                found = at if _is_same_format(head, stream.read(len(head))) else None
    stream.seek(0)
    return found


def _is_same_format(head: bytes, other: bytes) -> bool:
    if head[:4] in (b".snd", b"caff"):
        return other[:4] == head[:4]
    if (order := _riff_order(head)) is not None:
        return _riff_order(other) == order and other[8:12] == head[8:12]
    return other[:16] == head[:16] if head[:16] == _W64_RIFF else fixed_headers.is_same_format(head, other)


def pieces(stream: BinaryIO, size: int) -> list[bytes | range] | None:
    """The pieces of a file that libsndfile would misread as it is: of one whose writer never came back to write its
    sizes, with sizes that reach to its end; of a VOC, without what lies between its blocks.

    None for every other file, such as a wav that says 0 and means it: there the outer size is right. Leaves the stream
    at its start.

    Raises:
      DamagedError: a VOC that cannot be mended so.
    """
    head = _head(stream)
    made: list[bytes | range] | None = None
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        found, outer = _chunk(stream, 12, b"data", "<"), struct.unpack("<I", head[4:8])[0]
        if found is not None and found.size == 0 and found.start != size and outer + 8 != size:
            made = [range(found.start - 4), b"\xff\xff\xff\xff", range(found.start, size)]
    elif head[:16] == _W64_RIFF:
        found, outer = _wave64(stream), struct.unpack("<Q", head[16:24])[0]
        if found is not None and found.start <= size:
            unknown = found.size >= _STREAMED_64 or (found.size <= 0 and outer != size and found.start != size)
            if unknown or outer >= _STREAMED_64:
                length = size - found.start if unknown else found.size
                sizes = struct.pack("<Q", size), struct.pack("<Q", length + 24)
                made = [range(16), sizes[0], range(24, found.start - 8), sizes[1], range(found.start, size)]
    elif (mended := fixed_headers.voc_pieces(stream, head)) is not None:
        made = mended
    elif head[:4] == b"caff" and (found := _caf_to_the_end(stream)) is not None and found.start <= size:
        length = struct.pack(">q", size - found.start)
        made = [range(found.start - 8), length, range(found.start, size)]
    stream.seek(0)
    return made


def _head(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read(fixed_headers.HEAD).ljust(64, b"\0")  # one that is cut off says 0 where it says no more


def _promise(stream: BinaryIO) -> Promise | None:
    head = _head(stream)
    if (order := _riff_order(head)) is not None:
        wanted = {b"WAVE": b"data", b"AIFF": b"SSND", b"AIFC": b"SSND"}.get(head[8:12], b"BODY")
        promised = _chunk(stream, 12, wanted, order)
        return promised if promised is None or not _STREAMED <= promised.size <= 0xFFFFFFFF else None
    if head[:16] == _W64_RIFF:
        promised = _wave64(stream)
        return promised if promised is None or promised.size < _STREAMED_64 else None
    if head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        return None if length >= _STREAMED else Promise(start, length)
    if head[:4] == b"caff":
        return _caf(stream)
    return fixed_headers.promise(stream, head)


def _riff_order(head: bytes) -> str | None:
    """The byte order of a file of chunks with sizes of 32 bits, by its first 12 bytes; None for another file."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return ">" if head[:4] == b"RIFX" else "<"
    return ">" if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV") else None


def _chunk(stream: BinaryIO, start: int, wanted: bytes, order: str) -> Promise | None:
    """The chunk of sound of a RIFF or IFF file."""
    long_size = None

    def read(header: bytes, at: int) -> tuple[bytes, int, int]:
        nonlocal long_size
        name, length = struct.unpack(f"{order}4sI", header)
        if name == b"ds64":  # EBU Tech 3306: the outer size, then the size of the data, in 64 bits
            long_size = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))[1]
        if name == wanted and length == 0xFFFFFFFF and long_size:
            length = long_size
        return name, length, at + 8 + length + length % 2

    return _walk(stream, start, 8, wanted, read)


def _wave64(stream: BinaryIO) -> Promise | None:
    def read(header: bytes, at: int) -> tuple[bytes, int, int]:
        length = struct.unpack("<Q", header[16:])[0]  # counts its own header
        return header[:16], length - 24, at + (max(length, 24) + 7) // 8 * 8

    return _walk(stream, 40, 24, _W64_DATA, read)


def _caf(stream: BinaryIO) -> Promise | None:
    """Of a CAF, the chunk that reaches furthest: a packet table behind the sound is needed to read it."""
    sound = _walk(stream, 8, 12, b"data", _read_caf)
    if sound is None or sound.size < 0:
        return None
    behind = [_walk(stream, sound.start + sound.size, 12, name, _read_caf) for name in (b"pakt", b"kuki")]
    return max([sound, *filter(None, behind)])


def caf_frames(stream: BinaryIO) -> int | None:
    """Samples of a channel that the packet table of a CAF says there are; None where there is none."""
    if _head(stream)[:4] != b"caff" or (table := _walk(stream, 8, 12, b"pakt", _read_caf)) is None:
        return None
    stream.seek(table.start + 8)
    return int.from_bytes(stream.read(8), "big")


def _caf_to_the_end(stream: BinaryIO) -> Promise | None:
    """The chunk of sound of a CAF whose size is −1."""
    sound = _walk(stream, 8, 12, b"data", _read_caf)
    return sound if sound is not None and sound.size < 0 else None


def _read_caf(header: bytes, at: int) -> tuple[bytes, int, int]:
    name, length = struct.unpack(">4sq", header)
    return name, length, at + 12 + max(0, length)


def _walk(
    stream: BinaryIO, at: int, width: int, wanted: bytes, read: Callable[[bytes, int], tuple[bytes, int, int]]
) -> Promise | None:
    """Goes from chunk to chunk. `read` tells of a header of `width` bytes, and of where it lies, the chunk's name and
    size, and where the next begins."""
    for _ in range(MAX_CHUNKS):
        stream.seek(min(at, 2**62))
        if len(header := stream.read(width)) < width:
            return None
        name, length, following = read(header, at)
        if name == wanted:
            return Promise(at + width, length)
        at = following
    raise TooManyChunks(f"more than {MAX_CHUNKS} chunks before any sound")
