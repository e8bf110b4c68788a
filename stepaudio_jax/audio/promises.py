"""How much sound a file says it holds. libsndfile silently reads what is there, so the promise is checked apart."""

from __future__ import annotations

import struct
from typing import BinaryIO

_WAVE64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_STREAMED = 0x7FFFF000
"""Sizes from here on were written before the length was known: 0xFFFFFFFF by most, 0x7FFFF000 and more by sox."""


def missing_bytes(stream: BinaryIO, size: int) -> int:
    """Bytes of sound that the header of a wav, rf64, w64, aiff or au promises and a file of `size` bytes lacks.

    A streamed file, whose header was never completed, promises nothing. Leaves the stream at its start.
    """
    stream.seek(0)
    head = stream.read(16)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        promised = _riff(stream, ">" if head[:4] == b"RIFX" else "<", b"data")
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        promised = _riff(stream, ">", b"SSND")
    elif head[:4] == b"riff":
        promised = _wave64(stream)
    elif head[:4] == b".snd" and len(head) == 16:
        promised = struct.unpack(">II", head[4:12])
    else:
        promised = None
    stream.seek(0)
    if promised is None or _STREAMED <= promised[1] <= 0xFFFFFFFF:
        return 0
    return max(0, sum(promised) - size)


def open_ended(stream: BinaryIO, size: int) -> bytes | None:
    """A wav whose recorder never came back to write the sizes, with one that says "to the end of the file".

    None for every other file, such as a wav that says 0 and means it: there the outer size is right. libsndfile would
    find no sound in either. Leaves the stream at its start.
    """
    stream.seek(0)
    head = stream.read(12)
    found = _riff(stream, "<", b"data") if head[:4] == b"RIFF" and head[8:] == b"WAVE" else None
    stream.seek(0)
    if found is None or found[1] != 0 or found[0] == size or struct.unpack("<I", head[4:8])[0] + 8 == size:
        return None
    data = bytearray(stream.read())
    stream.seek(0)
    data[found[0] - 4 : found[0]] = b"\xff\xff\xff\xff"
    return bytes(data)


def _riff(stream: BinaryIO, order: str, wanted: bytes) -> tuple[int, int] | None:
    """Start and size of the chunk of sound."""
    stream.seek(12)
    long_size = None
    while len(header := stream.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", header)
        if name == wanted:
            return stream.tell(), long_size if length == 0xFFFFFFFF and long_size else length
        start = stream.tell()
        if name == b"ds64":  # EBU Tech 3306: the outer size, then the size of the data, in 64 bits
            long_size = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))[1]
        stream.seek(start + length + length % 2)
    return None


def _wave64(stream: BinaryIO) -> tuple[int, int] | None:
    stream.seek(40)
    while len(header := stream.read(24)) == 24:
        name, length = header[:16], struct.unpack("<Q", header[16:])[0]  # counts its own header
        if name == _WAVE64_DATA:
            return stream.tell(), length - 24
        if length < 24:
            return None
        stream.seek(stream.tell() - 24 + (length + 7) // 8 * 8)
    return None


_KBITS = {  # of layer III by MPEG version (3: 1, 2: 2, 0: 2.5), ISO 11172-3 and 13818-3
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[0] = _KBITS[2]


def mp3_samples(stream: BinaryIO) -> int | None:
    """Samples in the frames of an mp3 whose first frame does not say how many there are; None for one that does.

    libsndfile guesses the length of such a file from its first frame and, where the bit rate varies, stops there.
    """
    at = 0
    while stream.seek(at) >= 0 and (tag := stream.read(10))[:3] == b"ID3" and len(tag) == 10:
        at += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    stream.seek(at)
    data = stream.read(256)
    if any(tag in data for tag in (b"Xing", b"Info", b"VBRI")):
        return None
    data += stream.read()
    samples = at = 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        word = struct.unpack(">I", data[at : at + 4])[0]
        version, layer, kbits, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
        if word >> 21 != 0x7FF or version == 1 or layer != 1 or rate == 3 or kbits in (0, 15):
            at += 1
            continue
        hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        samples += 1152 if version == 3 else 576
        at += (144_000 if version == 3 else 72_000) * _KBITS[version][kbits] // hertz + (word >> 9 & 1)
    return samples
