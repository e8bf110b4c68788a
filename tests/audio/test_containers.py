"""Every format that soundfile writes is read whole, is refused where it was cut off and can say so, and never gives the
first of joined files alone."""

import struct

import numpy as np
import pytest

from stepaudio_jax.audio import load_audio_bytes, promises
from tests.audio.written import all_formats, noise, taken, written

FORMATS = {f"{f} {s} {c}": (f, s, c, r) for f, s, c, r in all_formats()}

UNSAID = {"IRCAM", "PAF", "PVF", "XI"}
"""They do not say how long they are; libsndfile leaves the length in an XI at 0."""


def sound(format: str, subtype: str, channels: int, rate: int) -> bytes:
    return written(np.stack([noise(0.5, rate)] * channels, 1), format, subtype, rate)


@pytest.mark.parametrize("written_as", FORMATS.values(), ids=FORMATS)
def test_every_format(written_as):
    format = written_as[0]
    data = sound(*written_as)
    whole = taken(data)
    assert isinstance(whole, int)
    # coders fill up their last block, which has up to 1,024 samples; XI says 44,100 Hz whatever is written
    assert 0 <= whole - 8000 <= 1024 or format in ("XI", "VOC"), whole
    if format not in UNSAID:
        for share in (0.3, 0.5, 0.9, 0.99):
            assert isinstance(taken(data[: int(len(data) * share)]), str), share
    joined = taken(data + data)
    assert isinstance(joined, str) or joined >= 2 * whole


@pytest.mark.parametrize(
    "format", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "AVR", "NIST", "MAT4", "MAT5", "VOC", "SVX", "MPC2K", "HTK"]
)
def test_two_bytes_of_the_last_sample_are_missed(format):
    data = written(noise(0.5), format, "PCM_16")
    short = data[:-3] if format == "VOC" else data[:-2]  # its last byte says that it ends
    assert taken(short) == "x: truncated, 2 bytes of sound that its header promises are missing"
    if format == "VOC":
        assert taken(data[:-1]) == taken(data)


def test_caf_whose_length_is_unknown():
    data = bytearray(written(noise(0.5), "CAF", "PCM_16"))
    at = data.index(b"data")
    data[at + 4 : at + 12] = struct.pack(">q", -1)
    assert taken(bytes(data)) == 8000


def test_caf_cut_off_in_the_packet_table_behind_its_sound():
    data = written(noise(0.5), "CAF", "ALAC_16")
    table, start = data.index(b"pakt"), data.index(b"data")
    moved = data[:table] + data[start:] + data[table:start]
    assert isinstance(taken(moved[:-4]), str)


def test_a_chunk_of_zeros_behind_the_sound_is_no_other_file():
    data = written(noise(0.5), "WAV", "PCM_16")
    for behind in (b"\0", bytes(100), b"RIFF", b"LIST\4\0\0\0abcd"):
        assert taken(data + behind) == 8000
    assert "another file begins at byte 16044" in str(taken(data + written(noise(), "WAV", "FLOAT")))


@pytest.mark.parametrize("format", ["WAV", "AIFF", "W64", "CAF"])
def test_headers_of_a_million_chunks(format):
    """They are refused after the first few thousand; nothing is walked through in Python."""
    chunk = {"WAV": b"JUNK" + bytes(4), "AIFF": b"JUNK" + bytes(4), "CAF": b"free" + bytes(8)}.get(format)
    chunk = chunk or b"junk" + bytes(12) + struct.pack("<Q", 24)
    data = written(noise(0.1), format, "PCM_16")
    at = {"W64": 40, "CAF": data.find(b"data")}.get(format, 12)
    flooded = data[:at] + chunk * (1 << 17) + data[at:]
    assert taken(flooded) == f"x: more than {promises.MAX_CHUNKS} chunks before any sound"
    few = data[:at] + chunk * 100 + data[at:]
    if format in ("W64", "CAF"):
        assert taken(few) == 1600


def voc(*blocks: tuple[int, bytes]) -> bytes:
    header = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x0114, 0x111F)
    return header + b"".join(bytes([kind]) + len(data).to_bytes(3, "little") + data for kind, data in blocks) + b"\0"


def test_voc_whose_sound_lies_in_several_blocks():
    """As ffmpeg writes it; libsndfile takes the headers of the blocks for sound, and says nothing."""
    sound = (noise(0.5) * 2**15).astype("<i2")
    first = struct.pack("<IBBH4x", 16000, 16, 1, 4)
    one = voc((9, first + sound.tobytes()))
    several = voc((9, first + sound[:1000].tobytes()), (5, b"a text\0"), (2, sound[1000:3000].tobytes()),
                  (2, sound[3000:].tobytes()))  # fmt: skip
    np.testing.assert_array_equal(load_audio_bytes(one), sound / np.float32(2**15))
    np.testing.assert_array_equal(load_audio_bytes(several), load_audio_bytes(one))
    assert "truncated, 2 bytes" in str(taken(several[:-3]))
    silence = voc((9, first + sound[:1000].tobytes()), (3, b"\xff\0\0"), (2, sound[1000:].tobytes()))
    assert "a VOC with a block of kind 3 behind its first sound" in str(taken(silence))


def test_caf_whose_packet_table_says_more_than_there_is():
    data = bytearray(written(noise(0.5), "CAF", "ALAC_16"))
    at = data.index(b"pakt") + 12 + 8
    assert int.from_bytes(data[at : at + 8], "big") == 8000
    data[at : at + 8] = (8001).to_bytes(8, "big")
    assert "truncated" in str(taken(bytes(data))) or "8000 of 8001" in str(taken(bytes(data)))


@pytest.mark.parametrize("format", sorted({format for format, *_ in FORMATS.values()}))
def test_only_its_first_bytes(format):
    """Wherever a header is cut off, it is refused, or taken for one of no sound."""
    data = next(sound(*written_as) for written_as in FORMATS.values() if written_as[0] == format)
    for size in [*range(1, 64), *range(64, 1100, 41)]:
        assert isinstance(taken(data[:size]), str) or format in UNSAID | {"AU", "W64"}, size


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x20ftypM4A \0\0\2\0", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")], ids=["m4a", "wma"]
)
def test_joined_files_that_ffmpeg_would_read_the_first_of(head):
    one = head + bytes(5000)
    assert "another file begins at byte 5016" in str(taken(one + one))
    assert "another file" not in str(taken(one))


def test_voc_of_too_many_blocks():
    data = written(noise(0.1), "VOC", "PCM_16")
    assert "blocks" in str(taken(data[:26] + b"\5\1\0\0\0" * (1 << 17) + data[26:]))
