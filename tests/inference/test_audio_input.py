"""Sound that is handed to a session: what is refused before the model sees it."""

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import AudioError, AudioTooLong, collect_warnings
from stepaudio_jax.inference.audio_input import load_sounds, max_seconds
from stepaudio_jax.text import Audio
from tests import small


@pytest.fixture
def wav(tmp_path):
    def write(samples, name="a.wav", **options):
        soundfile.write(tmp_path / name, samples, 16000, **options)
        return tmp_path / name

    return write


def test_files_are_read_no_further_than_there_are_positions(wav):
    """25 positions hold 2 s of sound."""
    assert max_seconds(25, split=False) == 2
    one, two = wav(small.sound(1.0), "one.wav"), wav(small.sound(2.0), "two.wav")
    assert [clip.seconds for clip in load_sounds([one, str(one)], 25, split=False)] == [1, 1]
    with pytest.raises(AudioTooLong) as refused:
        load_sounds([one, two], 25, split=False)
    message = str(refused.value)
    assert message.startswith(f"{two}: 2.0 s of sound, more than the 1 s allowed by the 25 positions of the model; ")
    assert 'long_audio="split" (--long-audio split)' in message
    assert [clip.seconds for clip in load_sounds([one, two], 25, split=True)] == [1, 2]
    assert max_seconds(25, split=True) == 4 * 3600


def test_arrays_are_in_memory_already_and_count(wav):
    sound = small.sound(2.0)
    assert load_sounds([sound, sound], 25, split=False)[1].samples is sound
    with pytest.raises(AudioTooLong, match="0 s allowed"):
        load_sounds([sound, wav(sound)], 25, split=False)


@pytest.mark.parametrize("scale", [2**7, 2**15, 2**31])
def test_floats_on_another_scale(wav, scale):
    sound = small.sound(0.5) * np.float32(scale)
    for given in (sound, Audio(sound, "mine"), wav(sound, subtype="FLOAT")):
        with pytest.raises(AudioError, match=f"peak of .* divide them by {scale}"):
            load_sounds([given], 1000, split=False)


def test_a_silent_first_channel_is_told(wav):
    sound = small.sound(0.5)
    with collect_warnings() as warned:
        load_sounds([wav(np.stack([0 * sound, sound], 1)), sound], 1000, split=False)
    assert len(warned) == 1 and "a.wav: the first channel is silent" in warned[0]
