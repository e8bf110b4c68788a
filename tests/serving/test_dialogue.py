"""A dialogue of the page: what it is to the model and to people, and what its sound looks like."""


import numpy as np
import pytest

from stepaudio_jax.audio import log_mel, stack
from stepaudio_jax.inference import (
    AudioProgress,
    Finished,
    SoundSplit,
    TextDelta,
    TokenScore,
    Usage,
    WindowFinished,
)
from stepaudio_jax.inference.types import Completion
from stepaudio_jax.serving.dialogue import Round, conversation, messages, transcript
from stepaudio_jax.serving.pictures import COLUMNS, envelope, mel_columns, picture
from stepaudio_jax.text import Audio
from tests import small

TOKEN = TokenScore(1, -0.5)


def finished(think="I hear a tone.", answer="One.", reason="stop"):
    usage = Usage(audio_seconds=1, audio_tokens=12, prompt_tokens=30, completion_tokens=7)
    return Finished(Completion("x", (), (), (), reason, reason, "", think, answer, True, usage))


def written(*events, start=None) -> Round:
    """A round after events, one a tenth of a second."""
    done = start or Round("What is it?", Audio(small.sound(1.0), "a.wav"), "/tmp/a.wav", asked=10.0)
    for number, event in enumerate(events, 1):
        done = done.after(event, 10.0 + number / 10)
    return done


def test_a_round_grows_with_its_events():
    now = written()
    assert now.status == "hearing"
    now = written(AudioProgress(1, 3))
    assert now.status == "hearing · 1 of 3 chunks of sound"
    now = written(TextDelta("x", "think", "I ", (TOKEN,) * 2), TextDelta("x", "think", "hear", (TOKEN,) * 3))
    assert (now.think, now.answer, now.tokens, now.think_tokens) == ("I hear", "", 5, 5)
    assert now.status == "thinking · 5 tokens (5 of thinking) · 30 tokens/s · first after 0.10 s"
    now = written(TextDelta("x", "answer", "One", (TOKEN,)), start=now)
    assert now.status.startswith("answering · 6 tokens (5 of thinking)")
    now = now.after(finished(), 11.0)
    assert (now.think, now.answer, now.ended, now.tokens) == ("I hear a tone.", "One.", "stop", 7)
    assert now.status.startswith("7 tokens (5 of thinking)")


def test_windows_are_counted_and_have_no_rate():
    now = written(SoundSplit("x", ((0, 60), (30, 90))), WindowFinished("x", 1, None))
    assert now.status == "hearing · 1 of 2 windows answered"
    now = written(TextDelta("x", "answer", "a"), TextDelta("x", "answer", "b"), finished(), start=now)
    assert now.tokens_per_second is None and "tokens/s" not in now.status


def test_the_model_reads_whole_rounds_and_the_last_question():
    first = written(finished())
    rounds = (first, first.stopped(), Round("And now?"))
    roles = [(turn.role, turn.text, turn.think, len(turn.audio)) for turn in conversation(rounds).turns]
    asked, said = ("human", "What is it?", None, 1), ("assistant", "One.", "I hear a tone.", 0)
    assert roles == [asked, said, asked, said, ("human", "And now?", None, 0)]


def test_a_sound_alone_is_a_question():
    (turn,) = conversation([Round("", Audio(small.sound(1.0)))]).turns
    assert turn.text == "" and len(turn.audio) == 1


def test_thinking_unfolds_and_folds():
    now = written(TextDelta("x", "think", "I hear", (TOKEN,)))
    sound, asked, thought = messages([now])
    assert sound["content"] == {"path": "/tmp/a.wav"} and asked["content"] == "What is it?"
    assert thought["metadata"] == {"title": "Thinking", "status": "pending"} and thought["content"] == "I hear"
    *_, thought, answer = messages([written(TextDelta("x", "answer", "One", (TOKEN,)), start=now)])
    assert thought["metadata"]["status"] == "done" and answer["content"] == "One"
    assert messages([now.stopped()])[-1]["metadata"]["status"] == "done"


def test_a_transcript_has_everything():
    rounds = (written(finished()), written(finished(think="", answer="Two", reason="length")), Round("Go").stopped())
    text = transcript(rounds, "tiny")
    assert text == (
        "# A dialogue with tiny\n\n"
        "**You:** *[a.wav, 1.0 s of sound]* What is it?\n\n> I hear a tone.\n\n**tiny:** One.\n\n"
        "**You:** *[a.wav, 1.0 s of sound]* What is it?\n\n**tiny:** Two *(cut off at its length)*\n\n"
        "**You:** Go\n\n**tiny:**  *(stopped)*\n"
    )


# Pictures


def test_a_waveform_keeps_every_extreme():
    samples = small.sound(10.0)
    samples[77_777], samples[3] = 3.0, -3.0
    low, high = envelope(samples)
    assert len(low) == len(high) == COLUMNS and low.min() == -3 and high.max() == 3
    short = small.sound(0.05)
    assert np.array_equal(envelope(short)[0], short)


def test_the_features_shown_are_those_the_model_hears():
    samples = small.sound(3.0)
    rows, sizes = stack([samples])
    expected = np.asarray(log_mel(rows, sizes))[0, : mel_columns(samples).shape[0]]
    np.testing.assert_allclose(mel_columns(samples), expected, atol=1e-5)
    assert mel_columns(small.sound(61.0)).shape == (COLUMNS, 128)


@pytest.mark.parametrize("samples", [np.zeros(16_000, np.float32), small.sound(0.03), small.sound(40.0)])
def test_any_sound_has_a_picture(samples):
    wave, mel = picture(samples).axes
    assert mel.get_xlim() == pytest.approx((0, len(samples) / 16_000)) and wave.get_ylim()[0] < 0
