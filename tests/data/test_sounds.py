"""Sounds are found where the roots say, and nowhere else."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.audio import AudioError
from stepaudio_jax.data.sounds import Sounds
from tests.data import records
from tests.data.records import CLIP, tone


@pytest.fixture
def folder(tmp_path):
    """A root `in`, and beside it what must not be reached."""
    for name in ("in/deep", "out"):
        (tmp_path / name).mkdir(parents=True)
        records.write_sounds(tmp_path / name)
    return tmp_path


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def flac(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="FLAC")
    return file.getvalue()


def test_paths_below_a_root(folder):
    sounds = Sounds([folder / "out", folder / "in"])
    for name in ("deep/clip.wav", "./deep/clip.wav", f"{folder}/in/deep/clip.wav"):
        clip = sounds.load(name, "audios[0]")
        assert np.array_equal(clip.samples, tone()) and clip.name == name


def test_relative_roots(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(Sounds(["in"]).load("deep/clip.wav", "x").samples) == 8000
    assert len(Sounds(["in"]).load(f"{folder}/in/deep/clip.wav", "x").samples) == 8000
    assert len(Sounds([""]).load("in/deep/clip.wav", "x").samples) == 8000


def test_nothing_outside_of_the_roots(folder):
    os.symlink(folder / "out", folder / "in" / "link")
    os.symlink(folder / "out" / CLIP, folder / "in" / "link.wav")
    os.symlink(folder / "in" / "deep", folder / "in" / "inner")
    inside = Sounds([folder / "in"])
    assert len(inside.load("inner/clip.wav", "x").samples) == 8000
    for name in ("link/clip.wav", "link.wav", f"{folder}/out/{CLIP}"):
        with pytest.raises(AudioError, match=r'^audios\[2\]: ".*" lies at .*/out/clip.wav, outside of'):
            inside.load(name, "audios[2]")
        assert len(Sounds([folder / "in", folder / "out"]).load(name, "x").samples) == 8000
    with pytest.raises(AudioError, match="no such file"):
        inside.load(f"{folder}/out/none.wav", "x")
    for name in ("../out/clip.wav", "deep/../deep/clip.wav", f"{folder}/in/../out/clip.wav", "deep/clip.wav\0.txt"):
        with pytest.raises(AudioError, match="leads out of its folder"):
            inside.load(name, "x")


@pytest.mark.parametrize("name", ["http://x.org/a.wav", "HTTPS://x.org/a.wav", "file:///etc/hostname", "s3://b/a.wav",
                                  "/etc/x://a.wav", "a b://c", "gs://b/http://x.org/a.wav"])  # fmt: skip
def test_nothing_is_fetched(folder, name):
    with pytest.raises(AudioError, match=r'^audio: ".*" is a URL; nothing is fetched'):
        Sounds([folder]).load(name, "audio")


@given(st.text(max_size=30) | st.sampled_from(["gs://b/x.wav", "/", ".", "deep", "a" * 5000, "gs://"]))
def test_any_name_is_found_or_refused(tmp_path_factory, name):
    with pytest.raises(AudioError) as caught:
        Sounds([tmp_path_factory.getbasetemp()]).load(name, "audio")
    assert str(caught.value).startswith("audio: ")


def test_a_pipe_is_not_opened(folder):
    os.mkfifo(folder / "pipe.wav")
    with pytest.raises(AudioError, match="no such file"):
        Sounds([folder]).load("pipe.wav", "x")


def test_tar_shards(folder):
    second = flac(tone(0.25))
    tar(folder / "a-0.tar", [("./clips/1.flac", flac(tone())), ("clips/2.flac", second)])
    tar(folder / "a-1.tar", [("clips/3.flac", second), ("clips/1.flac", second), ("cut.flac", second[:-100])])
    sounds = Sounds([folder / "in", folder / "a-*.tar"])
    assert [root.name for root in sounds.roots] == ["in", "a-0.tar", "a-1.tar"]
    for name, samples in {"clips/1.flac": 8000, "./clips/2.flac": 4000, "clips/3.flac": 4000}.items():
        assert np.array_equal(sounds.load(name, "x").samples, tone(samples / 16000))
    with pytest.raises(AudioError, match=r"cut\.flac: truncated"):
        sounds.load("cut.flac", "x")
    with pytest.raises(AudioError, match=r'"clips/4\.flac": no such file under .*in, .*a-0\.tar, .*a-1\.tar'):
        sounds.load("clips/4.flac", "x")
    copy = pickle.loads(pickle.dumps(sounds))
    assert len(copy.load("clips/1.flac", "x").samples) == 8000


def test_links_in_a_tar_are_not_followed(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "out" / CLIP)
        archive.addfile(link)
    with pytest.raises(AudioError, match="no such file"):
        Sounds([folder / "a.tar"]).load("link.wav", "x")


def test_tars_that_cannot_be_reached_into(folder):
    tar(folder / "z.tar", [("a.flac", flac(tone()))], mode="w:gz")
    with pytest.raises(ValueError, match=r"z\.tar: not an uncompressed tar"):
        Sounds([folder / "z.tar"]).load("a.flac", "x")
    whole = tar(folder / "a.tar", [("a.flac", flac(tone()))])
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.tar: (truncated within a\.flac|not an uncompressed tar)"):
        Sounds([whole]).load("a.flac", "x")


def test_roots_that_are_not_there(folder):
    for root, reason in {"none": "no such", "no-*.tar": "no such", "out/clip.wav": "expected a folder"}.items():
        with pytest.raises(ValueError, match=reason):
            Sounds([folder / root])


def test_bytes_and_data_urls(folder):
    data = (folder / "out" / CLIP).read_bytes()
    sounds = Sounds(())
    text = records.in_base64(folder / "out" / CLIP)
    for reference in (data, {"bytes": data, "path": None}, {"bytes": data}, f"data:audio/wav;base64,{text}"):
        assert np.array_equal(sounds.load(reference, "x").samples, tone())
    assert sounds.load({"bytes": data, "path": "a/b.wav"}, "x").name == "a/b.wav"
    for reference, reason in {
        "data:audio/wav,RIFF": "expected \"data:audio",
        "data:audio/wav;base64,====": "not base64",
        f"data:audio/wav;base64,{text[:-4000]}": "truncated",
    }.items():
        with pytest.raises(AudioError, match=reason):
            sounds.load(reference, "x")


@pytest.mark.parametrize("scale, kind", [(1, np.float32), (1, np.float64), (1 << 15, np.int16), (1 << 15, np.int64),
                                         (1 << 31, np.int64)])  # fmt: skip
def test_arrays(scale, kind):
    array = (tone() * scale).astype(kind)
    for shape in (array, np.stack([array, array * 0], axis=1), array.tolist()):
        clip = Sounds(()).load({"array": shape, "sampling_rate": 16000}, "x")
        assert np.array_equal(clip.samples, tone())
    half = Sounds(()).load({"array": array, "sampling_rate": 8000.0}, "x")
    assert len(half.samples) == 16000


@pytest.mark.parametrize("channels", range(1, 9))
def test_the_channels_of_an_array_stand_first_or_last(channels):
    """The first channel, whichever axis they are; at least 100 times as many samples as channels."""
    samples = tone()[: 100 * channels] if channels > 3 else tone()
    first = np.stack([samples, *np.zeros((channels - 1, len(samples)), np.float32)])
    for array in (first, first.T, first.tolist(), first.T.tolist()):
        clip = Sounds(()).load({"array": array, "sampling_rate": 16000}, "x")
        assert np.array_equal(clip.samples, samples)


@pytest.mark.parametrize("shape", [(2, 199), (199, 2), (9, 8000), (8000, 9), (1, 99), (8, 8), (8, 799), (400, 300)])
def test_an_array_whose_channels_cannot_be_told_is_refused(shape):
    with pytest.raises(AudioError, match=rf"^x: which axis of an array of shape \[{shape[0]}, {shape[1]}\] is"):
        Sounds(()).load({"array": np.zeros(shape, np.float32), "sampling_rate": 16000}, "x")


@pytest.mark.parametrize("reference, reason", [
    ({"array": [[[0.1]]], "sampling_rate": 16000}, r"expected numbers of shape .* found float64 \[1, 1, 1\]"),
    ({"array": ["a"], "sampling_rate": 16000}, "expected numbers"),
    ({"array": [], "sampling_rate": 16000}, r"found float64 \[0\]"),
    ({"array": [0.1] * 500}, "expected a sampling_rate in Hz beside the array, found None"),
    ({"array": [0.1] * 500, "sampling_rate": 10**12}, "expected a sampling_rate"),
    ({"array": [0.1] * 500, "sampling_rate": 7}, "a sample rate of 7 Hz"),
    ({"array": [float("nan")] * 500, "sampling_rate": 16000}, "not finite"),
    ({"path": None, "bytes": None}, "expected a path, a data: URL, bytes"),
    (7, "found int"),
    ("", "no such file"),
])  # fmt: skip
def test_references_that_mean_nothing(reference, reason):
    with pytest.raises(AudioError, match=reason):
        Sounds(()).load(reference, "x")


def test_long_sound_is_refused(folder):
    sounds = Sounds([folder], max_seconds=0.4)
    for reference in ("out/clip.wav", (folder / "out" / CLIP).read_bytes()):
        with pytest.raises(AudioError, match=r"more than the 0\.4 s allowed"):
            sounds.load(reference, "x")
