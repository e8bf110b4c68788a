"""FLAC and Ogg that contradict themselves are refused: checksums, numbers of samples, pages that are missing."""

import hashlib
import shutil
import struct
import subprocess

import numpy as np
import pytest

from stepaudio_jax.audio import ffmpeg, load_audio_bytes
from tests.audio.written import noise, taken, tone, with_serial, written

TOTAL, MD5 = slice(21, 26), slice(26, 42)  # where a FLAC says how many samples it has, and their checksum


def with_total(data: bytes, total: int) -> bytes:
    return data[: TOTAL.start] + (data[21] >> 4 << 36 | total).to_bytes(5, "big") + data[TOTAL.stop :]


def without_md5(data: bytes) -> bytes:
    return data[: MD5.start] + bytes(16) + data[MD5.stop :]


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_flac_that_a_pipe_wrote(subtype, rate, channels):
    """Neither its length nor its checksum is known."""
    sound = np.stack([noise(0.7, rate, seed) for seed in range(channels)], 1)
    data = written(sound, "FLAC", subtype, rate)
    whole = load_audio_bytes(data)
    streamed = without_md5(with_total(data, 0))
    np.testing.assert_array_equal(load_audio_bytes(streamed), whole)
    assert "truncated" in str(taken(streamed[:-40]))
    np.testing.assert_array_equal(load_audio_bytes(streamed + b"TAG" + bytes(125)), whole)  # ID3v1
    assert "1.0 s" not in str(taken(streamed, max_seconds=0.8))


@pytest.mark.parametrize("total", [1, 1000, 15999, 16001, 20000, 2**36 - 1])
def test_flac_whose_header_says_another_number_of_samples(total):
    data = written(noise(), "FLAC")
    for edited in (with_total(data, total), without_md5(with_total(data, total))):
        assert f"its header says {total} samples and its frames hold 16000" in str(taken(edited))


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_flac_whose_checksum_is_wrong(subtype):
    data = written(np.stack([noise(), tone()], 1), "FLAC", subtype)
    assert taken(data) == 16000
    wrong = data[: MD5.start] + bytes([data[MD5.start] ^ 1]) + data[MD5.start + 1 :]
    assert taken(wrong) == "x: broken, its samples do not match the checksum in its header (MD5)"
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 4}[subtype]
    if width < 4:  # the checksum is that of the samples as they were before: an independent look at what it is of
        scaled = np.stack([noise(), tone()], 1) * (1 << 8 * width - 1)
        stored = (load_stereo(data) * (1 << 8 * width - 1)).round().astype(f"<i{width}")
        assert np.abs(stored - scaled).max() <= 1 and hashlib.md5(stored.tobytes()).digest() == data[MD5]


def load_stereo(data: bytes) -> np.ndarray:
    import io

    import soundfile

    return soundfile.read(io.BytesIO(data))[0]


def test_flac_with_one_bit_flipped_anywhere_in_its_sound():
    data = written(noise(0.3), "FLAC")
    start = data.index(b"\xff\xf8")
    for at in range(start, len(data), 97):
        flipped = data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
        assert isinstance(taken(flipped), str), at


def test_flac_of_too_much_metadata():
    data = written(noise(), "FLAC")
    assert data[4] & 127 == 0
    flooded = data[:4] + b"\0" + data[5:42] + b"\1\0\0\0" * (1 << 16) + data[42:]
    assert "blocks of metadata" in str(taken(flooded))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_lacks_a_page(subtype):
    data = written(noise(20), "OGG", subtype)
    starts = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(starts) > 4
    assert taken(data) == 320000
    assert "without the page that ends it" in str(taken(data[: starts[-1]]))
    middle = data[: starts[-2]] + data[starts[-1] :]
    assert "pages of an Ogg are missing" in str(taken(middle))
    assert "truncated" in str(taken(data[:-1]))
    for at in (starts[-2] + 300, starts[-1] + 6, len(data) - 1):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert "checksum" in str(taken(flipped)), at
    assert taken(data + bytes(1000)) == 320000


def test_ogg_of_a_coder_that_libsndfile_does_not_read(monkeypatch):
    """It is checked before ffmpeg is asked, which does not mind."""
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)
    data = with_serial(written(noise(20), "OGG").replace(b"\x01vorbis", b"\x01sibrov"), 5)
    assert "libsndfile" in str(taken(data))
    assert taken(data[: len(data) * 3 // 4]) == "x: truncated within a page of an Ogg"


def test_ogg_of_empty_pages():
    """Half a million of them are looked at without a loop in Python."""
    data = written(noise(0.5), "OGG")
    assert isinstance(taken(data + (b"OggS" + bytes(23)) * 20_000), str)


@pytest.mark.parametrize("outer", [0, 104, 2**64 - 1, 2**63 - 1])
@pytest.mark.parametrize("size", [0, 24, 2**63 - 1, 2**64 - 1])
def test_w64_that_a_pipe_wrote(outer, size):
    data = bytearray(written(tone(), "W64", "PCM_16"))
    at = data.index(b"data") + 16
    data[16:24], data[at : at + 8] = struct.pack("<Q", outer), struct.pack("<Q", size)
    np.testing.assert_allclose(load_audio_bytes(bytes(data)), tone(), atol=1e-4)


def test_w64_of_no_sound():
    data = written(np.zeros(0, np.float32), "W64", "PCM_16")
    assert "holds no sound" in str(taken(data))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the PATH")
@pytest.mark.parametrize("kind", ["flac", "w64", "wav", "caf", "au", "ogg", "mp3"])
def test_what_ffmpeg_writes_to_a_pipe(kind):
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=440:d=3:r=16000", "-f", kind, "pipe:1"]
    data = subprocess.run(make, capture_output=True, check=True).stdout
    found = taken(data)
    assert isinstance(found, int) and 0 <= found - 48000 < 3000
