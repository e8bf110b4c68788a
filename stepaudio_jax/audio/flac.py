"""FLAC: how many samples its frames hold, whatever its header says, and the checksum of them (RFC 9639)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from stepaudio_jax.audio.errors import DamagedError
from stepaudio_jax.audio.files import find

MAX_METADATA = 128
"""Blocks of metadata: files have a handful."""

MAX_JOINED = 256

MAX_CANDIDATES = 4096
"""Places that look like the beginning of a frame: random bytes have one in 32,768."""

LONGEST_FRAME = 4 << 20
"""Bytes at the end of a file in which its last frame is looked for: 65,535 samples of 8 channels, 32 bits, are 2 MB."""


_HEADS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
"""How a FLAC begins: STREAMINFO, of 34 bytes, is its first block, and may be its last."""


class Info(NamedTuple):
    """What STREAMINFO says.

    Attributes:
      at: of its 34 bytes.
      audio: where the first frame lies.
      samples: of a channel; 0: unknown.
      md5: of all samples; zeros: unknown.
    """

    at: int
    audio: int
    block_size: int
    rate: int
    channels: int
    bits: int
    samples: int
    md5: bytes

    @property
    def has_checksum(self) -> bool:
        """Whether its samples can be compared with the header: libsndfile reads those of whole bytes only."""
        return any(self.md5) and self.bits in (8, 16, 24)


def links(stream: BinaryIO, size: int) -> Iterator[tuple[list[bytes | range], Info]]:
    """The pieces of each of the FLAC files in a file: one as a rule, several where they were joined. Each has the
    number of samples in its header, also where its writer did not know it.

    Raises:
      DamagedError: truncated, or another number of samples than the header says.
    """
    starts, at = [_start(stream)], _start(stream)
    while len(starts) <= MAX_JOINED and (at := _next_file(stream, read_info(stream, at).audio, size)) is not None:
        starts.append(at)
    if len(starts) > MAX_JOINED:
        raise DamagedError(f"more than {MAX_JOINED} FLAC files, one after another")
    for start, stop in zip(starts, [*starts[1:], size], strict=True):
        info = read_info(stream, start)
        held = _held(stream, info, stop)
        if held is not None and info.samples not in (0, held):
            what = "truncated" if held < info.samples else "broken"
            raise DamagedError(f"{what}, its header says {info.samples} samples and its frames hold {held}")
        if held is None and not info.samples:
            raise DamagedError("truncated or broken, a FLAC without a length whose last frame cannot be found")
        stream.seek(info.at + 13)
        total = int.from_bytes(stream.read(5), "big") >> 36 << 36 | (info.samples or held or 0)
        yield [range(start, info.at + 13), total.to_bytes(5, "big"), range(info.at + 18, stop)], info


def read_info(stream: BinaryIO, start: int) -> Info:
    """STREAMINFO of the FLAC file that begins at `start`. Raises DamagedError."""
    at = start + 4
    found = b""
    for _ in range(MAX_METADATA):
        stream.seek(at)
        header = stream.read(4)
        length = int.from_bytes(header[1:], "big")
        if at == start + 4:
            found = stream.read(34)
            if len(found) < 34 or header[0] & 127 or length != 34:
                raise DamagedError("a FLAC that does not begin with its STREAMINFO")
        at += 4 + length
        if len(header) == 4 and header[0] & 128:
            bits = int.from_bytes(found[10:18], "big")
            return Info(
                start + 8,
                at,
                int.from_bytes(found[2:4], "big"),
                bits >> 44,
                (bits >> 41 & 7) + 1,
                (bits >> 36 & 31) + 1,
                bits & (1 << 36) - 1,
                found[18:34],
            )
    raise DamagedError(f"more than {MAX_METADATA} blocks of metadata before any sound")


class Checksum:
    """Compares the samples that were decoded with the MD5 in the header."""

    def __init__(self, info: Info):
        self._info, self._md5 = info, hashlib.md5(usedforsecurity=False)

    def add(self, block: np.ndarray) -> None:
        """`block`: int32 [samples, channels], as libsndfile gives it: in the upper bits."""
        width = self._info.bits // 8
        octets = np.ascontiguousarray(block, "<i4").view(np.uint8).reshape(-1, 4)
        self._md5.update(np.ascontiguousarray(octets[:, 4 - width :]).data)

    def check(self) -> None:
        """Raises DamagedError."""
        if self._md5.digest() != self._info.md5:
            raise DamagedError("broken, its samples do not match the checksum in its header (MD5)")


def _start(stream: BinaryIO) -> int:
    """Behind what other programs put before a FLAC: ID3 tags."""
    at = 0
    for _ in range(16):
        stream.seek(at)
        head = stream.read(10)
        if head[:4] == b"fLaC":
            return at
        if head[:3] != b"ID3" or len(head) < 10:
            break
        at += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    raise DamagedError("a FLAC that does not begin where it should")


def _next_file(stream: BinaryIO, start: int, size: int) -> int | None:
    """Where behind `start` another FLAC file begins."""
    found = [at for head in _HEADS if (at := find(stream, head, start, size)) is not None]
    return min(found, default=None)


def _held(stream: BinaryIO, info: Info, stop: int) -> int | None:
    """Samples up to the end of the last frame, by its header; None where none is found."""
    start = max(info.audio, stop - LONGEST_FRAME)
    stream.seek(start)
    data = stream.read(stop - start)
    octets = np.frombuffer(data, np.uint8)
    if len(octets) < 6:
        return None
    second = octets[1:-4]
    candidates = np.flatnonzero((octets[:-5] == 0xFF) & (second >> 1 == 0x7C) & (octets[3:-2] & 1 == 0))
    for at in candidates[-MAX_CANDIDATES:][::-1].tolist():
        if (end := _frame_end(data[at : at + 17], info)) is not None:
            return end
    return None


def _frame_end(header: bytes, info: Info) -> int | None:
    """How many samples lie up to the end of a frame; None where its header is none of this stream."""
    if len(header) < 6:
        return None
    sizes, rates, channels, bits = header[2] >> 4, header[2] & 15, header[3] >> 4, header[3] >> 1 & 7
    if sizes == 0 or rates == 15 or header[3] & 1 or (channels + 1 if channels < 8 else 2) != info.channels:
        return None
    if channels > 10 or bits == 3 or (bits and (8, 12, 0, 16, 20, 24, 32)[bits - 1] != info.bits):
        return None
    ones = 8 - (header[4] ^ 255).bit_length()  # UTF-8, stretched to 36 bits: leading ones tell the length
    if ones in (1, 8):
        return None
    at = 4 + max(1, ones)
    number = header[4] & (1 << 7 - ones) - 1
    for octet in header[5:at]:
        number = number << 6 | octet & 63
    width = {6: 1, 7: 2}.get(sizes, 0)
    size = int.from_bytes(header[at : at + width], "big") + 1 if width else _block_size(sizes)
    at += width + {12: 1, 13: 2, 14: 2}.get(rates, 0)
    if at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    return (number if header[1] & 1 else number * info.block_size) + size


def _block_size(code: int) -> int:
    return 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8


def _crc8(data: bytes) -> int:
    """Polynomial x⁸ + x² + x + 1."""
    crc = 0
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 128 else crc << 1) & 255
    return crc
