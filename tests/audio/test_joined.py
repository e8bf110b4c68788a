"""Files that were put one after another (chained ogg, joined mp3 and flac) are read whole."""

import io

import numpy as np
import pytest

from stepaudio_jax.audio import load_audio_bytes, mp3
from tests.audio.written import noise, taken, tone, with_serial, written

ID3 = b"ID3\x03\0\0\0\0\x10\0" + bytes(2048)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg(subtype):
    first, second = written(noise(0.3), "OGG", subtype), written(tone(0.2, 48000), "OGG", subtype, 48000)
    parts = [load_audio_bytes(part) for part in (first, second)]
    for other in (second, with_serial(second, 77)):
        np.testing.assert_array_equal(load_audio_bytes(first + other), np.concatenate(parts))
    both = load_audio_bytes(first + second + first)
    np.testing.assert_array_equal(both, np.concatenate([*parts, parts[0]]))


def test_joined_flac():
    first, second = written(noise(0.3), "FLAC"), written(tone(0.2, 48000), "FLAC", "PCM_24", 48000)
    parts = [load_audio_bytes(part) for part in (first, second)]
    np.testing.assert_array_equal(load_audio_bytes(first + second), np.concatenate(parts))
    np.testing.assert_array_equal(load_audio_bytes(ID3 + first), parts[0])


@pytest.mark.parametrize("between", [b"", ID3, b"TAG" + bytes(125)], ids=["nothing", "ID3v2", "ID3v1"])
def test_joined_mp3(between):
    first, second = written(noise(2), "MP3"), written(tone(1, 44100), "MP3", rate=44100)
    parts = [load_audio_bytes(part) for part in (first, second)]
    found = load_audio_bytes(first + between + second)
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_joined_mp3_of_which_only_the_first_says_how_long_it_is():
    first, second = written(noise(2), "MP3"), written(noise(3, seed=1), "MP3")
    (link,) = mp3.find_links(_stream(second))
    bare = second[link.tag_bytes :]
    found = taken(first + bare)
    assert isinstance(found, int) and 0 <= found - 5 * 16000 < 6 * 1152


def test_long_sound_is_counted_over_all_of_them():
    ogg, mp3_, flac = (written(noise(1), format) for format in ("OGG", "MP3", "FLAC"))
    for data in (ogg, mp3_, flac):
        assert taken(data + data, max_seconds=2) == 32000
        assert "more than the 1.5 s" in str(taken(data + data, max_seconds=1.5))


@pytest.mark.parametrize("format", ["OGG", "FLAC", "MP3"])
def test_so_many_files_that_nobody_joined_them(format):
    """Each would be opened by itself."""
    data = written(noise(0.03), format)
    assert "one after another" in str(taken(data * 1002))


def test_the_second_mp3_has_no_frame_that_can_be_decoded():
    """It says how many there are, and there is none, or none that is whole."""
    first, second = written(noise(1), "MP3"), written(noise(1), "MP3")
    (link,) = mp3.find_links(_stream(second))
    for size in (link.tag_bytes, link.tag_bytes + 20, link.tag_bytes + 200):
        assert "truncated" in str(taken(first + second[:size])), size


def test_the_second_is_cut_off():
    for format in ("OGG", "FLAC", "MP3"):
        data = written(noise(1), format)
        assert "truncated" in str(taken(data + data[: len(data) * 2 // 3])), format


def _stream(data: bytes):
    return io.BytesIO(data)


# One mp3


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_frames_of_an_mp3_are_counted(rate):
    """The coder says in its first frame how many follow."""
    for channels, options in ((1, {"bitrate_mode": "VARIABLE"}), (2, {"bitrate_mode": "CONSTANT"})):
        sound = np.stack([noise(0.5, rate)] * channels, 1)
        data = written(sound, "MP3", rate=rate, **options)
        (link,) = mp3.find_links(_stream(data))
        assert link.frames == link.declared and link.runs == [range(len(data))]
        assert link.samples == link.frames * (1152 if rate >= 32000 else 576)


def test_a_million_bytes_that_look_like_frames():
    """What could be a frame but is not followed by one is passed over; too many of them are refused."""
    data = written(noise(1), "MP3")
    whole = taken(data)
    for junk in (b"\xff" * (1 << 20), b"\xff\xfb\x90\x00" * (1 << 18), bytes(1 << 20)):
        found = taken(data + junk)
        assert isinstance(whole, int) and (isinstance(found, str) or found >= whole)
    frame = b"\xff\xf3\x14\xc4" + bytes(20)  # 8 kbit/s at 24 kHz
    assert taken(data + (frame + b"\0") * 8200) == whole
    assert "broken" in str(taken(data + (2 * frame + b"\0") * 4100))
