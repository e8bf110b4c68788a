"""What is read, and every refusal: one line, the file's name and the cause."""

import importlib.util
import os
import shlex
import shutil
import struct
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import AudioError, check_samples, ffmpeg, load_audio, load_audio_bytes, promises

RATE = 16000


def tone(seconds=1.0, rate=RATE, hertz=440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    """Writes samples to a file and gives its path."""

    def write(samples, rate=RATE, name="a.wav", **options):
        soundfile.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    return write


@pytest.fixture
def no_ffmpeg(monkeypatch):
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)


def refused(path, match, **options):
    with pytest.raises(AudioError, match=match) as caught:
        load_audio(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# What is read


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW"])
def test_wav(wav, subtype):
    found = load_audio(wav(tone(), subtype=subtype))
    assert found.dtype == np.float32 and found.shape == (RATE,)
    np.testing.assert_allclose(found, tone(), atol={"ULAW": 0.02, "PCM_16": 1e-4}.get(subtype, 1e-6))


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"])
def test_other_formats(wav, name):
    path = wav(tone(), name=name)
    for found in (load_audio(path), load_audio(str(path)), load_audio_bytes(path.read_bytes())):
        assert abs(len(found) - RATE) <= 1
        assert np.abs(found[: RATE - 200] - tone()[: RATE - 200]).mean() < 0.02


def test_the_name_does_not_decide(wav):
    """soundfile takes a name in .raw for a format that states no rate."""
    path = wav(tone())
    for name in ("a.raw", "a", "a.mp3"):
        path = path.rename(path.with_name(name))
        np.testing.assert_allclose(load_audio(path), tone(), atol=1e-4)


def test_what_lies_beside_it_does_not_matter(wav, tmp_path, monkeypatch):
    """libsndfile looks for the resource fork that macOS keeps in "._NAME"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "._").write_bytes(b"")
    for name in ("a.wav", "a.mp3", "a.flac"):
        path = wav(tone(), name=name)
        (tmp_path / f"._{name}").write_bytes(b"")
        assert len(load_audio(path)) == len(load_audio_bytes(path.read_bytes())) == RATE


def test_first_channel_not_the_mean(wav):
    np.testing.assert_allclose(load_audio(wav(np.stack([tone(), -tone()], 1), subtype="FLOAT")), tone())


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates(wav, rate):
    found = load_audio(wav(tone(rate=rate), rate=rate, subtype="FLOAT"))
    assert abs(len(found) - RATE) <= 1
    np.testing.assert_allclose(found[500:-500], tone()[500 : len(found) - 500], atol=2e-3)


def test_eight_channels_at_192_khz(wav):
    sound = np.zeros((192_000, 8), np.float32)
    sound[:, 0], sound[:, 7] = tone(rate=192_000), 0.9
    found = load_audio(wav(sound, rate=192_000, subtype="FLOAT"))
    np.testing.assert_allclose(found[500:-500], tone()[500:-500], atol=2e-3)


def test_longer_than_a_block(wav):
    sound = np.random.default_rng(0).uniform(-1, 1, (600_000, 2)).astype(np.float32)
    np.testing.assert_array_equal(load_audio(wav(sound, subtype="FLOAT")), sound[:, 0])


@pytest.mark.parametrize("outer", [0, 8, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF024])
def test_streamed_wav_whose_header_was_never_completed(wav, outer, size):
    path = wav(tone(), subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = struct.pack("<I", outer)
    data[at + 4 : at + 8] = struct.pack("<I", size)
    path.write_bytes(data)
    np.testing.assert_allclose(load_audio(path), tone(), atol=1e-4)


def test_chunks_behind_the_sound(wav):
    path = wav(tone(), subtype="PCM_16")
    data = bytearray(path.read_bytes() + b"LIST" + struct.pack("<I", 2000) + bytes(2000))
    data[4:8] = struct.pack("<I", len(data) - 8)
    path.write_bytes(data)
    assert len(load_audio(path)) == RATE


# What is refused


def test_missing_file(tmp_path):
    refused(tmp_path / "none.wav", "no such file")


def test_folder(tmp_path):
    refused(tmp_path, "a folder, expected a sound file")


def test_empty_file(tmp_path):
    (tmp_path / "a.wav").touch()
    refused(tmp_path / "a.wav", "the file is empty")
    with pytest.raises(AudioError, match=r"^upload: the file is empty$"):
        load_audio_bytes(b"", "upload")


def test_unreadable_file(wav):
    path = wav(tone())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(path, "Permission denied")


def test_text_named_wav(tmp_path, no_ffmpeg):
    (tmp_path / "a.wav").write_text("This is not a sound.\n" * 100)
    refused(tmp_path / "a.wav", "not a sound file that libsndfile reads .*, and ffmpeg, .* is not on the PATH")


@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.w64", "a.aiff", "a.au", "a.flac", "a.mp3"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated(wav, name, share, no_ffmpeg):
    path = wav(np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), name=name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated")


def test_truncated_by_one_sample(wav):
    path = wav(tone(), subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "truncated, 2 bytes of sound that its header promises are missing")


def test_only_a_header(wav, no_ffmpeg):
    path = wav(tone(), subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:44])
    refused(path, "truncated, 32000 bytes")
    path.write_bytes(path.read_bytes()[:20])
    refused(path, "not a sound file")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 48000])
def test_not_finite(wav, bad, rate):
    sound = tone(rate=rate)
    sound[rate // 4 : rate // 4 + 3] = bad
    refused(wav(sound, rate=rate, subtype="FLOAT"), r"3 samples are not finite numbers, the first at 0\.250 s")


def test_zero_length(wav):
    refused(wav(np.zeros(0, np.float32)), r"holds no sound \(0 samples\)")
    refused(wav(np.zeros(0, np.float32), name="a.flac"), "the file is empty")  # libsndfile writes nothing
    with pytest.raises(AudioError, match=r"^x: holds no sound"):
        load_audio_bytes(bare_header(), "x")


def bare_header() -> bytes:
    """44 bytes, as a recorder leaves it that was stopped before the first sample: both sizes 0."""
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 0)


def test_zero_length_with_chunks_behind(wav):
    path = wav(np.zeros(0, np.float32), subtype="PCM_16")
    data = bytearray(path.read_bytes() + b"LIST" + struct.pack("<I", 2000) + bytes(2000))
    data[4:8] = struct.pack("<I", len(data) - 8)
    path.write_bytes(data)
    refused(path, r"holds no sound \(0 samples\)")


@pytest.mark.parametrize("samples", [1, 80, 320])
def test_too_short_for_one_token(wav, samples):
    refused(wav(tone(samples / RATE)), rf"{samples / RATE:.4f} s of sound; one audio token needs more than 0\.020 s")
    assert len(load_audio(wav(tone(321 / RATE)))) == 321


def test_longer_than_allowed(wav):
    path = wav(tone(2))
    assert len(load_audio(path, max_seconds=2)) == 2 * RATE
    refused(path, r"2\.0 s of sound, more than the 1\.5 s allowed", max_seconds=1.5)
    with pytest.raises(AudioError, match=r"^x: 2\.0 s of sound"):
        load_audio_bytes(path.read_bytes(), "x", max_seconds=1.5)


@pytest.mark.parametrize("rate", [8, 5_000_000])
def test_unbelievable_rate(wav, rate):
    """16 KB at 8 Hz would become half an hour."""
    refused(wav(tone(), rate=rate), f"a sample rate of {rate} Hz, expected 1000 to 1000000")


def test_remote_path_without_its_library():
    if any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        pytest.skip("the library is here")
    refused("gs://bucket/a.wav", "gcsfs")


@pytest.mark.parametrize(
    "samples, match",
    [
        (np.zeros((2, 800), np.float32), r"expected floats of shape \[samples\], found float32 \[2, 800\]"),
        (np.zeros(800, np.int16), r"expected floats of shape \[samples\], found int16 \[800\]"),
        (np.zeros(0, np.float32), "holds no sound"),
        (np.full(800, np.nan), "800 samples are not finite"),
        (np.zeros(320, np.float32), "needs more than 0.020 s"),
    ],
)
def test_check_samples(samples, match):
    with pytest.raises(AudioError, match=match):
        check_samples(samples)


def test_check_samples_passes_what_is_sound():
    sound = tone()
    assert check_samples(sound) is sound  # not copied
    assert check_samples(sound.astype(np.float64)).dtype == np.float32


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_bytes_only_audio_errors(wav, data):
    name = data.draw(st.sampled_from(["a.wav", "a.rf64", "a.w64", "a.aiff", "a.au", "a.flac", "a.ogg", "a.mp3"]))
    broken = bytearray(wav(tone(0.1), name=name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, min(120, len(broken) - 1)))] = data.draw(st.integers(0, 255))
    try:
        found = load_audio_bytes(bytes(broken[: data.draw(st.integers(1, len(broken)))]), "x", max_seconds=60)
    except AudioError as error:
        assert str(error).startswith("x: ") and "\n" not in str(error)
    else:
        assert found.dtype == np.float32 and np.isfinite(found).all() and len(found) > 320


# mp3 without a length


def without_length(path, name="b.mp3"):
    """The mp3 without its first frame, which says how long it is."""
    data = path.read_bytes()
    assert b"Xing" in data[:64] or b"Info" in data[:64]
    second = data.index(data[:2], 32)
    path.with_name(name).write_bytes(data[second:])
    return path.with_name(name)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_mp3_of_constant_rate_without_length(wav, rate):
    path = wav(tone(3, rate), rate, "a.mp3", bitrate_mode="CONSTANT", compression_level=0.5)
    assert abs(len(load_audio(path)) - 3 * RATE) <= 1
    assert 0 <= len(load_audio(without_length(path))) - 3 * RATE < 4 * 1152  # the coder's delay is not taken off


def test_mp3_of_varying_rate_without_length(wav, no_ffmpeg):
    """libsndfile guesses its length from the first frame's rate, and would stop there without a word."""
    sound = tone(20)
    sound[: 10 * RATE] = np.random.default_rng(0).normal(0, 0.2, 10 * RATE)
    path = without_length(wav(sound, name="a.mp3", bitrate_mode="VARIABLE"))
    with soundfile.SoundFile(path) as file:
        guessed = file.frames
    assert guessed < 0.9 * len(sound)
    found = load_audio(path)
    assert 0 <= len(found) - len(sound) < 4 * 576
    loudness = [np.abs(found[start * RATE : (start + 1) * RATE]).mean() for start in (5, 15, 18)]
    assert loudness == pytest.approx([0.16, 0.318, 0.318], abs=0.01)  # of the noise, and of the tone behind it
    with path.open("rb") as stream:
        assert len(sound) <= (promises.mp3_samples(stream) or 0) < len(sound) + 4 * 576


# ffmpeg


def pretend(folder, monkeypatch, body: str):
    """Puts an `ffmpeg` on the PATH that runs these lines of Python."""
    program = folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    script = program.with_suffix(".py")
    script.write_text(f"import sys, time\n{body}\n")
    # Not "#!python": such a line ends at the first space of the interpreter's path.
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def odd(tmp_path):
    """A file that libsndfile does not read, with a name that looks like an option and a protocol."""
    path = tmp_path / "-i http:odd.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A ")
    return path


def test_ffmpeg_reads_the_rest(wav, odd, tmp_path, monkeypatch):
    heard = wav(tone(rate=48000), 48000, subtype="FLOAT")
    body = f"open({str(tmp_path / 'args')!r}, 'w').write('\\n'.join(sys.argv))\n"
    body += f"sys.stdout.buffer.write(open({str(heard)!r}, 'rb').read())"
    pretend(tmp_path, monkeypatch, body)
    found = load_audio(odd, max_seconds=5)
    np.testing.assert_allclose(found[500:-500], tone()[500:-500], atol=2e-3)
    arguments = (tmp_path / "args").read_text().splitlines()
    assert any(argument.startswith("file:/dev/fd/") for argument in arguments) and "-nostdin" in arguments
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    assert not {"hls", "concat", "image2"} & set(ffmpeg.FORMATS.split(","))  # they open other files
    assert len(load_audio_bytes(odd.read_bytes())) == RATE
    refused(odd, "more than the 0.5 s", max_seconds=0.5)


@pytest.mark.parametrize(
    "body, match",
    [
        (
            "sys.stderr.write('[in#0 @ 0x5] [mov] moov atom not found\\nmore\\n'); sys.exit(1)",
            "says: moov atom not found$",
        ),
        (
            "name = sys.argv[sys.argv.index('-i') + 1]\n"
            "sys.stderr.write(f'[in#0 @ 0x5] {name}: Invalid data found\\n'); sys.exit(1)",
            "says: Invalid data found$",
        ),
        (
            "name = sys.argv[sys.argv.index('-i') + 1]\n"
            "sys.stderr.write(f'Error opening input file {name}.\\n'); sys.exit(1)",
            "says: Error opening input file the file.$",
        ),
        ("sys.exit(3)", "says: exit code 3"),
        ("pass", "says: exit code 0"),
        ("sys.stdout.write('x' * 99); sys.stderr.write('[x] File ended prematurely\\n')", "File ended prematurely"),
        ("time.sleep(30)", "did not finish within 0.5 s"),
    ],
    ids=["refuses", "names it", "opens it", "fails silently", "says nothing", "truncated", "hangs"],
)
def test_ffmpeg_fails(odd, tmp_path, monkeypatch, body, match):
    pretend(tmp_path, monkeypatch, body)
    if "sleep" in body:
        monkeypatch.setattr(ffmpeg, "TIMEOUT_SECONDS", 0.5)
    refused(odd, match)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the PATH")
def test_real_ffmpeg(wav, tmp_path):
    sound = np.stack([tone(3, 48000), -tone(3, 48000)], 1)
    source = wav(sound, 48000)
    for name in ("b.m4a", "b.webm", "b.mkv"):
        ffmpeg.subprocess.run(
            ["ffmpeg", "-v", "error", "-i", source, *(["-c:a", "libopus"] if name != "b.m4a" else []), tmp_path / name],
            check=True,
        )
        found = load_audio(tmp_path / name)
        assert abs(len(found) - 3 * RATE) < 1600
        assert np.abs(found).mean() == pytest.approx(0.318, abs=0.02)  # the mean of both channels is silence
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
        refused(tmp_path / name, "ffmpeg says")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{source}\n#EXT-X-ENDLIST\n")
    refused(tmp_path / "list.m3u8", "ffmpeg says")
