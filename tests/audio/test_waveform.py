"""Levels, silent first channels, and memory: what is said of sound, and what it takes to read it."""

import tracemalloc
import warnings

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.audio import (
    AudioError,
    AudioTooLong,
    AudioWarning,
    check_samples,
    collect_warnings,
    load_audio_array,
    load_audio_bytes,
)
from stepaudio_jax.audio.waveform import Waveform
from tests.audio.written import RATE, taken, tone, written


def said(data: bytes) -> list[str]:
    with collect_warnings() as warned:
        load_audio_bytes(data, "x")
    return warned


# A first channel that is silent


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("CAF", "ALAC_16"),
    ],
)
@pytest.mark.parametrize("rate", [RATE, 48000])
def test_speech_on_the_right_only(format, subtype, rate):
    right = tone(1, rate)
    (message,) = said(written(np.stack([0 * right, right], 1), format, subtype, rate))
    assert message.startswith("x: the first channel is silent while channel 2 of 2 is not; only the first is heard")


FAINT = {
    "dither": np.random.default_rng(0).integers(-1, 2, RATE) / 2**15,
    "hum at −70 dB": tone(hertz=50) * 2 * 10**-3.5,
    "an offset": np.full(RATE, 0.2),
}


@pytest.mark.parametrize("first", FAINT.values(), ids=FAINT)
def test_what_counts_as_silent(first):
    assert said(written(np.stack([first, tone() / 2], 1), "WAV", "FLOAT"))


SOUND = {
    "quiet": (tone() * 0.01, tone()),
    "both silent": (0 * tone(), 0 * tone()),
    "both dithered": (FAINT["dither"], FAINT["dither"][::-1]),
    "the second silent": (tone(), 0 * tone()),
    "both faint": (tone() * 1e-3, tone() * 2e-3),
    "only its last second": (np.concatenate([np.zeros(9 * RATE), tone()]), np.concatenate([tone(9), 0 * tone()])),
}


@pytest.mark.parametrize("channels", SOUND.values(), ids=SOUND)
def test_what_does_not(channels):
    assert said(written(np.stack(channels, 1), "WAV", "FLOAT")) == []


def test_the_loudest_channel_is_named():
    """5.1: speech is in the centre."""
    sound = np.zeros((RATE, 6), np.float32)
    sound[:, 2], sound[:, 3] = tone(), tone() / 10
    (message,) = said(written(sound, "WAV"))
    assert "channel 3 of 6" in message


def test_without_collect_it_is_a_warning():
    data = written(np.stack([0 * tone(), tone()], 1), "WAV")
    with pytest.warns(AudioWarning, match="x: the first channel is silent"):
        load_audio_bytes(data, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio_bytes(written(tone(), "WAV"), "x")
        with collect_warnings():
            load_audio_bytes(data, "x")


def test_other_channels_may_hold_anything():
    sound = np.stack([tone(), np.full(RATE, np.nan), np.full(RATE, np.inf), tone() * 1e38], 1)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(load_audio_array(sound.astype(np.float32), RATE), tone())


# Levels


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_on_the_scale_of_integers(bits, subtype):
    scale = 1 << bits - 1
    sound = tone().astype(np.float64) * scale
    peak = f"{np.abs(np.float32(sound)).max():.6g}"
    expected = f"x: its samples reach a peak of {peak}, expected floats within ±1; they look like {bits}-bit integers: "
    expected += f"divide them by {scale}"
    for rate in (RATE, 48000):
        assert taken(written(sound, "WAV", subtype, rate)) == expected
    for given_ in (sound, sound.astype(np.float32)):
        with pytest.raises(AudioError) as refused:
            check_samples(given_, "x")
        assert str(refused.value) == expected
        with pytest.raises(AudioError, match="peak"):
            load_audio_array(given_[:, None], 48000, "x")


def test_a_peak_below_zero_counts():
    sound = tone()
    sound[100] = -300
    assert "a peak of 300," in str(taken(written(sound, "WAV", "FLOAT")))


def test_a_mix_may_go_beyond_full_scale():
    assert taken(written(tone() * 8, "WAV", "FLOAT")) == RATE
    assert "1e+30, expected floats within ±1" in str(taken(written(tone() * 0 + 1e30, "WAV", "FLOAT")))
    assert "not finite" in str(taken(written(tone().astype(np.float64) * 1e300, "WAV", "DOUBLE")))


# Resampling block by block


@given(
    st.integers(1000, 400_000),
    st.integers(1, 30_000),
    st.lists(st.integers(0, 9000), max_size=6),
)
def test_resampling_is_the_same_however_sound_is_cut(rate, frames, cuts):
    """The whole at once is what soxr gives."""
    sound = np.random.default_rng(rate).uniform(-1, 1, frames).astype(np.float32)
    waveform = Waveform("x")
    waveform.begin(rate, 1)
    for part in np.split(sound, sorted(min(cut, frames) for cut in cuts)):
        waveform.add(part[:, None])
    whole = sound if rate == RATE else soxr.resample(sound, rate, RATE, quality="HQ")
    np.testing.assert_array_equal(waveform.finish(), whole)


def test_memory_grows_with_seconds_not_with_samples():
    """8 s at FLAC's highest rate are 5.2 million samples, 21 MB as floats, and half a megabyte of what is heard."""
    data = written(np.zeros(8 * 655_350, np.int16), "FLAC", rate=655_350)
    tracemalloc.start()
    try:
        assert taken(data, max_seconds=10) == 8 * RATE
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_many_channels_at_high_rates_may_last_less():
    """They take as long to decode as more of less: 0.1 s of 8 channels at 655 kHz are 0.52 million values."""
    data = written(np.zeros((65_535, 8), np.int16), "FLAC", rate=655_350)
    assert taken(data, max_seconds=0.7) == 1600
    refused = "x: 0.1 s of sound, more than the 0.1 s allowed of 8 channels at 655350 Hz"
    assert taken(data, max_seconds=0.6) == refused
    assert taken(written(np.zeros((9600, 8), np.int16), "FLAC", rate=96_000), max_seconds=0.1) == 1600


def test_too_long_is_told_from_the_header_where_it_says_so():
    waveform = Waveform("x", max_seconds=10)
    waveform.begin(8000, promised=80_000)
    with pytest.raises(AudioTooLong, match=r"x: 10\.0 s of sound, more than the 10 s allowed"):
        waveform.begin(8000, promised=80_001)
    waveform.begin(8000)
    waveform.add(np.zeros((80_000, 1), np.float32))
    with pytest.raises(AudioTooLong, match="x: more than the 10 s allowed"):
        waveform.add(np.zeros((1, 1), np.float32))
