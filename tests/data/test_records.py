"""Stored records: what goes in comes out, to the stated precision; no bytes crash the reader."""

import dataclasses
import io
import json

import numpy as np
import pytest
import safetensors.numpy
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data.records import decode_mels, decode_sample, encode_sample
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.text import Audio, Conversation, Text, Turn, assistant, human, system
from tests import small

texts = st.text(st.characters(codec="utf-8"), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
extras = st.dictionaries(texts, json_values, max_size=3)


@st.composite
def sounds(draw) -> Audio:
    """Clips on the grid of 16 bit, on that of 24 bit, on neither, or beyond ±1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.uniform(-1, 1, draw(st.integers(321, 3000)))
    kind = draw(st.sampled_from(["16", "24", "float", "loud", "full scale"]))
    made = {"16": np.floor(noise * 2**15) / 2**15, "24": np.floor(noise * 2**23) / 2**23, "loud": noise * 3}
    made["full scale"] = np.sign(noise)
    return Audio(made.get(kind, noise).astype(np.float32), draw(texts))


@st.composite
def conversations(draw, clips) -> Conversation:
    parts = st.lists(st.builds(Text, texts, st.booleans()) | clips, max_size=4).map(tuple)
    role = st.sampled_from(["system", "human", "tool_json_schemas"]) | texts.filter(lambda t: t != "assistant")
    loss = st.none() | st.booleans()
    others = st.builds(Turn, role, parts, st.none(), loss, st.just(True), extras)
    replies = st.builds(Turn, st.just("assistant"), parts, st.none() | texts, loss, st.just(True), extras)
    turns = draw(st.lists(others | replies, max_size=4))
    if draw(st.booleans()):
        turns.append(dataclasses.replace(draw(replies), complete=draw(st.booleans())))
    return Conversation(tuple(turns), draw(st.none() | texts), draw(extras))


def plain(conversation: Conversation | None):
    """Everything but the samples, comparable."""
    if conversation is None:
        return None
    return conversation.tools, conversation.extra, [
        (t.role, t.think, t.loss, t.complete, t.extra, [p if isinstance(p, Text) else p.name for p in t.parts])
        for t in conversation.turns
    ]


@settings(max_examples=60)
@given(st.data())
def test_round_trip(data):
    clips = st.sampled_from(data.draw(st.lists(sounds(), min_size=1, max_size=3)))
    rejected = data.draw(st.none() | conversations(clips))
    sample = Sample(data.draw(conversations(clips)), rejected, data.draw(texts))
    back = decode_sample(encode_sample(sample))
    assert back.where == sample.where
    for ours, theirs in ((back.conversation, sample.conversation), (back.rejected, sample.rejected)):
        assert plain(ours) == plain(theirs)
        if ours is None or theirs is None:
            continue
        for clip, source in zip(ours.audio, theirs.audio, strict=True):
            on_grid = np.array_equal(source.samples * 2.0**23 % 1, np.zeros_like(source.samples))
            exact = np.abs(source.samples).max() > 1 or (on_grid and source.samples.max() < 1)
            assert clip.samples.dtype == np.float32
            np.testing.assert_allclose(clip.samples, source.samples, rtol=0, atol=0 if exact else 2.0**-23)


def stored_kinds(*waveforms) -> list[tuple]:
    sample = Sample(Conversation((human(*(Audio(w.astype(np.float32)) for w in waveforms)),)))
    tensors = safetensors.numpy.load(encode_sample(sample))
    kinds = []
    for i in range(len(waveforms)):
        data = tensors[f"audio.{i}"]
        kinds.append(data.dtype.name if data.dtype != np.uint8 else soundfile.info(io.BytesIO(data)).subtype)
    return kinds


def test_each_clip_in_the_smallest_form_that_holds_it():
    sixteen = np.arange(-400, 400) / 2**15
    edge = np.full(400, -1.0)
    assert stored_kinds(sixteen, sixteen / 2, sixteen * 100, edge, -edge) == [
        "PCM_16", "PCM_24", "float32", "PCM_16", "PCM_24",
    ]  # fmt: skip


def test_a_clip_heard_twice_is_stored_once():
    clip = Audio(small.sound(0.1))
    prompt = human(clip, clip, "Compare.")
    sample = Sample(Conversation((prompt, assistant("same"))), Conversation((prompt, assistant("other"))))
    data = encode_sample(sample)
    assert [name for name in safetensors.numpy.load(data) if name.startswith("audio")] == ["audio.0"]


def test_what_cannot_be_stored_is_refused():
    def refused(match, *parts, **extra):
        with pytest.raises(RecordError, match=match):
            encode_sample(Sample(Conversation((human(*parts),), extra=extra), where="a.jsonl:3"))

    refused(r"^a.jsonl:3: .*surrogates not allowed", "\ud800")
    refused(r"^a.jsonl:3: Object of type ndarray is not JSON", "x", column=np.zeros(2))
    refused(r"^a.jsonl:3: noise: .*not finite", Audio(np.full(400, np.nan, np.float32), "noise"))
    refused(r"^a.jsonl:3: short: 0.0200 s", Audio(np.zeros(320, np.float32), "short"))
    refused(r"^a.jsonl:3: long: 7201 s", Audio(np.broadcast_to(np.float32(0), (7201 * 16000,)), "long"))


GOOD = encode_sample(Sample(Conversation((system("s"), human(Audio(small.sound(0.05)), "q"), assistant("a")))))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_error(data):
    with pytest.raises(RecordError, match=r"^shard:5: "):
        decode_sample(data, "shard:5")


@settings(max_examples=300)
@given(st.data())
def test_changed_bytes_are_read_or_refused(data):
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(GOOD)))
    for hostile in (bytes(changed), GOOD[:cut] if cut < len(GOOD) else b""):
        try:
            decode_sample(hostile, "x")
        except RecordError as error:
            assert "\n" not in str(error) and str(error).startswith("x: ")


def record(document, **tensors) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return safetensors.numpy.save({"conversation": np.frombuffer(text, np.uint8), **tensors})


TURN = {"role": "human", "parts": []}
HOSTILE = {
    "no object": (record([]), "list"),
    "no turns": (record({"where": "w"}), "no 'turns'"),
    "turns of another type": (record({"turns": {}, "where": "w"}), "turns: expected list, found dict"),
    "deep": (record(b"[" * 200_000), "not a record"),
    "a huge number": (record(b'{"turns": [], "where": ' + b"9" * 5000 + b"}"), "not a record"),
    "no utf-8": (record(b'"\xff\xfe'), "not a record"),
    "no such clip": (
        record({"turns": [{"role": "human", "parts": [{"audio": 1, "name": ""}]}], "where": ""}),
        "audio: clip 1 of 0",
    ),
    "a clip before the first": (
        record({"turns": [{"role": "human", "parts": [{"audio": -1, "name": ""}]}], "where": ""}),
        "audio: clip -1 of 0",
    ),
    "think of a human": (record({"turns": [TURN | {"think": "x"}], "where": ""}), "only an assistant turn"),
    "loss as a number": (record({"turns": [TURN | {"loss": 1}], "where": ""}), "loss: expected bool, found int"),
    "a clip missing": (record({"turns": []}, **{"audio.1": np.zeros(400, np.float32)}), "no 'audio.0'"),
    "a clip of integers": (record({"turns": []}, **{"audio.0": np.zeros(9, np.int64)}), "expected a FLAC stream"),
    "a clip in two dimensions": (record({"turns": []}, **{"audio.0": np.zeros((9, 9), np.float32)}), "expected floats"),
    "a wav for a FLAC": (record({"turns": []}, **{"audio.0": np.frombuffer(b"RIFF1234WAVE", np.uint8)}), "FLAC"),
}


@pytest.mark.parametrize("data, expected", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_records(data, expected):
    with pytest.raises(RecordError, match=expected):
        decode_sample(data, "x")


def test_a_few_bytes_cannot_claim_hours():
    """A FLAC of 7,201 s of silence, and one whose header promises 2³² samples."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 16000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(7201):
            file.write(np.zeros(16000, np.int16))
    silence = np.frombuffer(stream.getvalue(), np.uint8)
    assert len(silence) < 500_000
    promised = np.frombuffer(safetensors.numpy.load(GOOD)["audio.0"].tobytes(), np.uint8).copy()
    promised[22:26] = 255  # the low bits of the number of samples
    for data, reason in ((silence, "more than the 7200 s"), (promised, "more than the 7200 s|truncated")):
        with pytest.raises(RecordError, match=reason):
            decode_sample(record({"turns": []}, **{"audio.0": data}), "x")


def test_mels():
    mel = np.arange(256, dtype=np.float32).reshape(2, 128)
    sample = Sample(Conversation((human(Audio(small.sound(0.05))),)))
    np.testing.assert_array_equal(decode_mels(encode_sample(sample, {0: mel}))[0], mel)
    assert decode_mels(encode_sample(sample)) == ()
    with pytest.raises(RecordError, match=r"mel: expected float32 \[frames, 128\], found float32 \[256\]"):
        decode_mels(encode_sample(sample, {0: mel.ravel()}))
