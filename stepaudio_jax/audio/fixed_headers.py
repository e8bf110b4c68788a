"""How much sound a file promises, in formats that say so at fixed places of their header, or in blocks behind it."""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, NamedTuple

from stepaudio_jax.audio.errors import DamagedError

HEAD = 1024
"""Bytes from which a format is told and most headers are read."""

MAX_BLOCKS = 1 << 16
"""Of a VOC: a block may hold 16 MB."""


class Promise(NamedTuple):
    """Where a file's sound begins and how many bytes there are to be, both as its header says."""

    start: int
    size: int


def promise(stream: BinaryIO, head: bytes) -> Promise | None:
    """What a file promises whose first HEAD bytes are these; None where it is of another format or cut off in them.

    Raises:
      DamagedError: a VOC of too many blocks.
    """
    for magic, read in _FORMATS:
        if re.match(magic, head, re.DOTALL):
            try:
                return read(stream, head)
            except (struct.error, IndexError, ValueError) as error:
                if isinstance(error, DamagedError):
                    raise
                return None
    return None


def is_same_format(head: bytes, other: bytes) -> bool:
    """Whether another file begins like this one, whose first HEAD bytes are these."""
    return any(re.match(magic, head, re.DOTALL) and re.match(magic, other, re.DOTALL) for magic, _ in _FORMATS)


def _avr(stream: BinaryIO, head: bytes) -> Promise:
    stereo, bits = struct.unpack_from(">HH", head, 12)
    return Promise(128, struct.unpack_from(">I", head, 26)[0] * (2 if stereo else 1) * -(-bits // 8))


def _nist(stream: BinaryIO, head: bytes) -> Promise | None:
    stream.seek(0)
    size = int(head[8:16])
    fields = dict(re.findall(rb"^(\w+) -i (\d+)", stream.read(min(size, 1 << 16)), re.MULTILINE))
    count, width = fields.get(b"sample_count"), fields.get(b"sample_n_bytes", b"1")
    return count and Promise(size, int(count) * int(width) * int(fields.get(b"channel_count", b"1")))


def _mat4(stream: BinaryIO, head: bytes) -> Promise | None:
    """Two matrices: the sample rate, and the sound."""
    order = ">" if head[2:4] == b"\x03\xe8" else "<"
    at = 0
    for _ in range(2):
        stream.seek(at)
        kind, rows, columns, _, letters = struct.unpack(f"{order}5I", stream.read(20))
        start, size = at + 20 + letters, rows * columns * (8, 4, 4, 2, 2, 1)[kind // 10 % 10]
        at = start + size
    return Promise(start, size)


def _mat5(stream: BinaryIO, head: bytes) -> Promise | None:
    """The same. A matrix is made of elements: flags, sizes, name and numbers; libsndfile counts itself 8 bytes too many
    in the matrix's size, so the numbers' own is taken."""
    order = ">" if head[126:128] == b"MI" else "<"
    stream.seek(132)
    at = 136 + struct.unpack(f"{order}I", stream.read(4))[0] + 8  # behind the first matrix, and the second's size
    for _ in range(3):
        element = _element(stream, order, at)
        at = element.start + -(-element.size // 8) * 8 if element.start == at + 8 else at + 8
    return _element(stream, order, at)


def _element(stream: BinaryIO, order: str, at: int) -> Promise:
    """The numbers in an element of a MAT5, of which up to 4 bytes may lie in its header of 8."""
    stream.seek(at)
    kind, size = struct.unpack(f"{order}II", stream.read(8))
    return Promise(at + 4, kind >> 16) if kind >> 16 else Promise(at + 8, size)


def _voc(stream: BinaryIO, head: bytes) -> Promise | None:
    """Up to the end of the last block."""
    blocks = _voc_blocks(stream, head)
    return blocks[-1][1] if blocks else None


def voc_pieces(stream: BinaryIO, head: bytes) -> list[bytes | range] | None:
    """The pieces of a VOC whose sound lies in several blocks, without what lies between: libsndfile would take that for
    sound. None for every other file.

    Raises:
      DamagedError: a kind of block that libsndfile does not know behind the first sound.
    """
    if not re.match(_VOC, head):
        return None
    blocks = _voc_blocks(stream, head)
    first = next((number for number, (kind, _) in enumerate(blocks) if kind in (1, 9)), len(blocks))
    behind = [(kind, block) for kind, block in blocks[first + 1 :] if kind not in (4, 5)]  # markers and texts
    if not behind:
        return None
    if other := {kind for kind, _ in behind} - {2}:
        raise DamagedError(f"a VOC with a block of kind {min(other)} behind its first sound, which is not read")
    sound = blocks[first][1]
    rest = (range(block.start, block.start + block.size) for _, block in behind)
    return [range(sound.start + sound.size), *rest, b"\0"]


def _voc_blocks(stream: BinaryIO, head: bytes) -> list[tuple[int, Promise]]:
    """Kind and place of each block. One of kind 0 ends the file, if it has not ended."""
    blocks, at = [], struct.unpack_from("<H", head, 20)[0]
    for _ in range(MAX_BLOCKS):
        stream.seek(at)
        header = stream.read(4)
        if len(header) < 4 or header[0] == 0:
            return blocks
        blocks.append((header[0], Promise(at + 4, int.from_bytes(header[1:], "little"))))
        at = sum(blocks[-1][1])
    raise DamagedError(f"a VOC of more than {MAX_BLOCKS} blocks")


def _wve(stream: BinaryIO, head: bytes) -> Promise:
    return Promise(32, struct.unpack_from(">I", head, 18)[0])


def _xi(stream: BinaryIO, head: bytes) -> Promise:
    """FastTracker's instrument: the headers of its samples, then the samples; libsndfile reads the first."""
    count = struct.unpack_from("<H", head, 296)[0]
    return Promise(298 + 40 * count, struct.unpack_from("<I", head, 298)[0])


def _mpc2k(stream: BinaryIO, head: bytes) -> Promise:
    stereo, frames = head[21], struct.unpack_from("<I", head, 30)[0]
    return Promise(42, frames * 2 * (2 if stereo else 1))


def _sds(stream: BinaryIO, head: bytes) -> Promise:
    """Packets of 127 bytes, 120 of them words of 7 bits each: as many to a sample as its bits need."""
    bits, low, middle, high = head[6], *head[10:13]
    samples = 120 // -(-max(bits, 8) // 7)
    return Promise(21, -(-(low | middle << 7 | high << 14) // samples) * 127)


def _htk(stream: BinaryIO, head: bytes) -> Promise:
    return Promise(12, struct.unpack_from(">I", head)[0] * 2)


_VOC = rb"Creative Voice File\x1a"

_FORMATS = (
    (rb"2BIT", _avr),
    (rb"NIST_1A\n", _nist),
    (rb"MATLAB 5\.0 MAT-file", _mat5),
    (_VOC, _voc),
    (rb"ALawSoundFile\*\*\0", _wve),
    (rb"Extended Instrument: ", _xi),
    (rb"\x01\x04", _mpc2k),
    (rb"\xf0\x7e.\x01", _sds),
    (rb"(\0\0\0\0|\0\0\x03\xe8)(\x01\0\0\0\x01\0\0\0|\0\0\0\x01\0\0\0\x01)", _mat4),
    (rb".{8}\0\x02\0\0", _htk),
)
