"""Long sound: where windows lie, how texts are joined, what is asked and refused, and that nothing is dropped."""

import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax import StepAudio, checkpoints
from stepaudio_jax.data import collate, encode
from stepaudio_jax.inference import (
    AudioProgress,
    Completion,
    Engine,
    EngineOptions,
    Finished,
    LongAudio,
    PromptError,
    Request,
    SamplingParams,
    SoundSplit,
    TextDelta,
    Usage,
    WindowFinished,
    WindowReply,
)
from stepaudio_jax.inference.long_audio import Plan
from stepaudio_jax.inference.merging import Merger, joined
from stepaudio_jax.inference.seams import join
from stepaudio_jax.inference.windows import cut
from stepaudio_jax.text import Audio, Conversation, Text, assistant, human, system
from tests import small

SECOND = 16_000


# Where windows lie


@given(
    total=st.integers(1, 400_000), longest=st.integers(16_000, 100_000), share=st.floats(0, 0.5), seed=st.integers(0, 9)
)
def test_windows_cover_every_sample_and_overlap(total, longest, share, seed):
    rng = np.random.default_rng(seed)
    overlap = int(share * longest)
    samples = rng.standard_normal(total).astype(np.float32) * (rng.random() < 0.8)
    for start in rng.integers(0, total, 20):
        samples[start : start + 5_000] *= 0.001
    windows = cut(samples, longest, overlap)
    covered = np.zeros(total, bool)
    for start, stop in windows:
        assert 0 <= start < stop <= total and stop - start <= longest
        covered[start:stop] = True
    assert covered.all() and windows[0][0] == 0 and windows[-1][1] == total
    for (_, stop), (start, _) in itertools.pairwise(windows):
        assert stop - start >= overlap // 2
    least = 1 if total <= longest else -(-(total - overlap) // (longest - overlap))
    assert len(windows) == least


def test_windows_are_cut_where_it_is_quiet():
    samples = small.sound(100.0)
    nominal = cut(samples, 60 * SECOND, 20 * SECOND)
    assert nominal == [(0, 60 * SECOND), (40 * SECOND, 100 * SECOND)]  # noise has no pauses
    for pause in (42.0, 58.5, 50.0):
        samples[int(pause * SECOND) : int((pause + 0.3) * SECOND)] *= 0.01
    (_, stop), (start, _) = cut(samples, 60 * SECOND, 20 * SECOND)
    assert start / SECOND == pytest.approx(42.15, abs=0.06) and stop / SECOND == pytest.approx(58.65, abs=0.06)


# Texts joined

SPEECH = "When the sun came up over the hills, the old man was already at his boat, mending the nets again."


def test_what_two_windows_both_heard_is_said_once():
    spoken = SPEECH.split()
    left, right = " ".join(spoken[:14]), " ".join(spoken[8:])
    assert join([left, right], 50) == SPEECH
    assert join([left + " blur", "own " + right.lower()], 50).casefold() == SPEECH.casefold()  # edges misheard
    assert join([left, right, " ".join(spoken[-5:]) + " Then he left."], 50) == SPEECH + " Then he left."


def test_scripts_without_spaces_are_joined_by_characters():
    text = "太阳从山上升起来的时候,老人已经在船边补他的渔网了。"
    assert join([text[:18], text[9:]], 50) == text


def test_texts_that_differ_are_kept_whole():
    pairs = [
        ("Three tones.", "Two tones."),
        ("The speaker talks about ships. Her voice is calm.", "The speaker talks about a storm at sea that winter."),
        (f"{SPEECH} And then a long silence.", "Nobody speaks here."),
    ]
    for left, right in pairs:
        assert join([left, right], 50) == f"{left}\n{right}"
    far = SPEECH + " And so the day went on, and the next, and the one after that." * 3
    assert join([far, SPEECH], 20) == f"{far}\n{SPEECH}"  # not near the seam
    assert join([SPEECH, SPEECH], 0) == f"{SPEECH}\n{SPEECH}"


# What is asked


@functools.cache
def engine(positions: int = 1024) -> Engine:
    made = small.model(max_position_embeddings=positions)
    made.decoder.lm_head.set_value(made.decoder.lm_head[...].at[:2].set(0.0))
    return Engine(made, small.tokenizer(), EngineOptions(max_rows=4, burst=8))


def asked(seconds: float, options: LongAudio | None, text: str = "How many tones?", **sampling) -> Request:
    params = SamplingParams(**({"temperature": 0.0, "max_new_tokens": 12} | sampling))
    conversation = Conversation((system("Be brief."), human(Audio(small.sound(seconds)), text)))
    return Request(conversation, params, long_audio=options)


def plan_of(request: Request) -> Plan:
    plan = Plan.of(engine(), request)
    assert plan is not None
    return plan


def heard(plan: Plan) -> list[np.ndarray]:
    return [request.conversation.audio[0].samples for request in plan.requests if request.conversation]


@pytest.mark.parametrize("options", [LongAudio(), LongAudio(20.0, 5.0), LongAudio(11.0, 0.0)])
@pytest.mark.parametrize("rule", ["hf", "vllm"])
def test_the_windows_of_a_request_cover_every_sample_and_fit(options, rule, monkeypatch):
    monkeypatch.setattr(engine(), "length_rule", rule)
    request = asked(200.0, options)
    plan = plan_of(request)
    whole, end = request.conversation.audio[0].samples, 0
    for (start, stop), samples in zip(plan.windows, heard(plan), strict=True):
        first, last = round(start * SECOND), round(stop * SECOND)
        np.testing.assert_array_equal(samples, whole[first:last])
        assert first <= end and stop - start <= (options.window_seconds or 200)
        end = last
    assert end == len(whole)
    sizes = [len(engine().prepare(one).token_ids) for one in plan.requests]
    assert max(sizes) + 12 <= 1024
    if options == LongAudio():  # they fill what there is
        count, text = len(plan.windows), max(sizes) - 12.5 * max(stop - start for start, stop in plan.windows)
        assert 12.5 * (200 + (count - 2) * 30) / (count - 1) + text + 12 > 1024  # one window less would not fit
    for number, one in enumerate(plan.requests, 1):
        assert one.conversation is not None and one.long_audio is None and one.id == f"{request.id}-window-{number}"
        first, note, clip, question = [part for turn in one.conversation.turns for part in turn.parts]
        assert isinstance(note, Text) and re.fullmatch(
            r"\[Sound from 0:0.* to .* of a recording of 0:03:20.\]\n", note.text
        )
        assert (first.text, question.text) == ("Be brief.", "How many tones?") and isinstance(clip, Audio)


def test_the_longest_clip_of_the_last_human_turn_is_split_and_the_rest_stays():
    clips = [Audio(small.sound(seconds, i), f"clip {i}") for i, seconds in enumerate((3.0, 20.0, 90.0, 2.0))]
    turns = human(clips[1], "Before?"), assistant("Yes."), human(clips[0], clips[2], clips[3], "And now?")
    request = dataclasses.replace(asked(1.0, LongAudio(30.0)), conversation=Conversation(turns))
    plan = plan_of(request)
    for one in plan.requests:
        assert one.conversation is not None
        assert [clip.name for clip in one.conversation.audio][:2] == ["clip 1", "clip 0"]
        assert one.conversation.audio[2].name.startswith("clip 2, 0:0") and one.conversation.audio[3].name == "clip 3"


def test_what_fits_is_asked_whole():
    assert Plan.of(engine(), asked(60.0, LongAudio())) is None
    assert Plan.of(engine(), asked(60.0, LongAudio(40.0))) is not None
    assert Plan.of(engine(), asked(200.0, None)) is None
    assert (
        Plan.of(engine(), dataclasses.replace(asked(1.0, LongAudio()), conversation=Conversation((human("?"),))))
        is None
    )


def test_windows_are_answered_together_and_merged_by_asking():
    request = asked(200.0, LongAudio(70.0, 10.0))
    events = list(StepAudio(engine(), SamplingParams()).generate([asked(1.0, None), request]))
    own = [event for event in events if event.request_id == request.id]
    assert {event.request_id for event in events} == {
        request.id,
        events[0].request_id,
    }  # windows have no events of theirs
    split, *_, last = own
    assert isinstance(split, SoundSplit) and isinstance(last, Finished)
    done = last.completion
    assert split.windows == tuple((reply.start, reply.stop) for reply in done.windows) and len(done.windows) == 4
    told = {event.number: event.reply for event in own if isinstance(event, WindowFinished)}
    assert [told[number] for number in (1, 2, 3, 4)] == list(done.windows)
    progress = [event for event in own if isinstance(event, AudioProgress)]
    assert progress[-1].done == progress[-1].total == 12  # four windows of 57.5 s, three chunks each
    for reply in done.windows:
        assert reply.completion.usage.audio_seconds == pytest.approx(reply.stop - reply.start)
        assert reply.completion.finish_reason == "length" and len(reply.completion.token_ids) == 12
    text = "".join(event.text for event in own if isinstance(event, TextDelta))
    assert text == done.text and len(done.token_ids) == 12 == len(done.log_probs) and done.merges == ()
    assert done.usage.completion_tokens == 5 * 12
    assert done.usage.audio_seconds == pytest.approx(sum(reply.stop - reply.start for reply in done.windows))


def test_windows_are_answered_together_and_joined():
    request = dataclasses.replace(asked(150.0, LongAudio(70.0, 10.0, "join"), seed=3), thinking=False)
    done = [e.completion for e in StepAudio(engine(), SamplingParams()).generate([request]) if isinstance(e, Finished)]
    assert len(done) == 1 and len(done[0].windows) == 3 and done[0].finish_reason == "length"
    for reply in done[0].windows:
        assert reply.completion.answer in done[0].answer
    assert done[0].token_ids == () and done[0].usage.completion_tokens == 36


# Merging


def completion(answer: str, request_id: str = "", *, think: str = "", cut: bool = False) -> Completion:
    reason = "length" if cut else "stop"
    usage = Usage(1.0, 13, 20, 5)
    return Completion(request_id, (7,), (0.0,), (False,), reason, reason, answer, think, answer, bool(answer), usage)


def replies(answers: list[str]) -> list[WindowReply]:
    return [WindowReply(50.0 * i, 50.0 * i + 60, completion(answer)) for i, answer in enumerate(answers)]


def merger(budget: int) -> Merger:
    """Words for tokens."""

    def ask(text: str) -> Request:
        return Request(Conversation((human(text, "What is it?"),)), SamplingParams(max_new_tokens=500), id="whole")

    return Merger("whole", ask, lambda text: len(text.split()), budget, 10_000.0)


def follow(rounds, write) -> tuple[Completion, list[list[Request]]]:
    """What rounds return, `write` being the model, and what they asked."""
    asked, batch = [], next(rounds)
    while True:
        asked.append(batch)
        try:
            batch = rounds.send({request.id: write(request) for request in batch})
        except StopIteration as end:
            return end.value, asked


def prompt(request: Request) -> str:
    assert request.conversation is not None
    return request.conversation.turns[-1].text


def test_the_model_reads_every_answer_with_its_minutes():
    given = replies(["red", "green", ""])
    given[1] = dataclasses.replace(given[1], completion=completion("green", cut=True))
    given[2] = dataclasses.replace(given[2], completion=completion("", think="a blue", cut=True))
    done, rounds = follow(merger(200).rounds(given), lambda request: completion("all", request.id))
    assert [len(batch) for batch in rounds] == [1] and rounds[0][0].id == "whole"
    for part in (
        "[A recording of 2:46:40",
        "[0:00:00 to 0:01:00]\nred\n",
        "[0:00:50 to 0:01:50]\ngreen\n(Cut off here.)\n",
        "[0:01:40 to 0:02:40]\n(No answer yet, only thoughts.) a blue\n(Cut off here.)",
        "whole recording.]\nWhat is it?",
    ):
        assert part in prompt(rounds[0][0])
    assert done.answer == "all" and done.windows == tuple(given) and done.usage.completion_tokens == 20


def test_answers_that_do_not_fit_are_merged_in_a_tree():
    """Every word of every answer reaches a prompt, and every prompt fits."""
    answers = [" ".join(f"w{i}.{j}" for j in range(length)) for i, length in enumerate([30] * 20 + [250, 1])]
    budget = 100
    read: list[str] = []

    def write(request: Request) -> Completion:
        text = prompt(request)
        read.extend(re.findall(r"w\d+\.\d+", text))
        assert len(text.split()) <= budget + len(Merger.frame(10_000.0).split()) + 3
        if request.id == "whole":
            return completion("all", request.id)
        assert not request.thinking and request.sampling.max_new_tokens <= budget // 3
        return completion("short " * request.sampling.max_new_tokens, request.id)

    done, rounds = follow(merger(budget).rounds(replies(answers)), write)
    assert set(read) == set(" ".join(answers).split())
    assert len(rounds) > 2 and [len(batch) for batch in rounds] == sorted((len(b) for b in rounds), reverse=True)
    assert done.answer == "all" and len(done.windows) == 22 and len(done.merges) == sum(map(len, rounds[:-1]))
    first = done.merges[: len(rounds[0])]
    assert first[0].start == 0 and first[-1].stop == 50.0 * 21 + 60


@pytest.mark.parametrize("answer", ["", "word " * 40])
def test_answers_that_cannot_be_shortened_are_joined(answer):
    given = replies([" ".join(f"w{i}.{j}" for j in range(30)) for i in range(8)])
    done, _ = follow(merger(100).rounds(given), lambda request: completion(answer and answer * 9, request.id))
    assert done.answer == "\n".join(reply.completion.answer for reply in given)
    assert done.merges and done.windows == tuple(given) and done.token_ids == ()


def test_a_window_without_an_answer_leaves_a_mark_where_answers_are_joined():
    given = replies(["red", ""])
    given[1] = dataclasses.replace(given[1], completion=completion("", think="hm", cut=True))
    done = joined("whole", given)
    assert done.answer == "red\n[0:00:50 to 0:01:50: no answer]"
    assert (done.finish_reason, done.complete) == ("length", False) and "hm" in done.think


# What is refused


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (LongAudio(500.0), {}, r"window_seconds: expected at most 7\d\.\d, which is what fits .* found 500"),
        (
            LongAudio(overlap_seconds=60.0),
            {},
            r"overlap_seconds: expected at most half a window of 7\d\.\d s, found 60",
        ),
        (
            LongAudio(),
            {"text": "why " * 900},
            r"long_audio: beside audio the prompt has \d+ tokens .* no second of sound",
        ),
        (
            LongAudio(1.0),
            {"text": "why " * 240},
            r"merge: beside the windows' answers the prompt has \d+ tokens of 1024",
        ),
    ],
)
def test_splits_that_cannot_be_are_refused_before_any_work(options, more, message):
    with pytest.raises(PromptError, match=message):
        Plan.of(engine(), asked(200.0, options, **more))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("split", {"window_seconds": 0.5}), "window_seconds: expected 1 or more, found 0.5"),
        (("split", {"overlap_seconds": -1.0}), "overlap_seconds: expected 0 or more"),
        (("split", {"window_seconds": 10.0, "overlap_seconds": 6.0}), "at most half a window of 10.0 s, found 6.0"),
        (("split", {"merge": "sum"}), 'merge: expected "ask" or "join", found "sum"'),
        (("cut", {}), 'long_audio: expected "refuse" or "split", found "cut"'),
        (("refuse", {"window_seconds": 9.0}), 'window_seconds: expected long_audio "split" beside it, found "refuse"'),
    ],
)
def test_mistakes_are_named(values, message):
    choice, options = values
    with pytest.raises(ValueError, match=message):
        LongAudio.of(choice, **options)


def test_a_refusal_names_the_ways_out():
    with pytest.raises(PromptError) as refused:
        engine().prepare(asked(200.0, None))
    message = str(refused.value)
    factor = re.search(r"yarn_factor=([\d.]+) \(--yarn-factor ([\d.]+)\), which was no part of the release", message)
    assert factor and factor[1] == factor[2] and 'long_audio="split" (--long-audio split)' in message
    assert "a shorter piece" in message
    wide = Engine(
        small.model(max_position_embeddings=1024 * 4), small.tokenizer(), EngineOptions(max_length=1024, max_rows=1)
    )
    with pytest.raises(PromptError, match=r"allow more of the model's 4096 positions \(EngineOptions.max_length\)"):
        wide.prepare(asked(200.0, None))
    few = Engine(small.model(max_position_embeddings=4096), small.tokenizer(), EngineOptions(pages=20))
    with pytest.raises(PromptError, match=r"room for 320 .* give the cache room for \d+ pages") as refused:
        few.prepare(asked(200.0, None))
    assert "yarn" not in str(refused.value)
    text = dataclasses.replace(asked(1.0, None), conversation=Conversation((human("why " * 9000),)))
    with pytest.raises(PromptError) as refused:
        engine().prepare(text)
    assert "split" not in str(refused.value)


# One prompt


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = small.model(num_hidden_layers=1, max_position_embeddings=4096)
    made.decoder.lm_head.set_value(made.decoder.lm_head[...].at[:2].set(0.0))
    path = tmp_path_factory.mktemp("long") / "small"
    checkpoints.save(path, made, small.tokenizer().backend.to_str())
    return path


def test_the_factor_that_a_refusal_names_suffices(checkpoint):
    clip = small.sound(400.0)
    options = EngineOptions(max_rows=1)
    with pytest.raises(PromptError) as refused:
        StepAudio.load(checkpoint, options=options).ask([clip], "What?", max_new_tokens=40)
    factor = re.search(r"yarn_factor=([\d.]+)", str(refused.value))
    assert factor is not None
    model = StepAudio.load(checkpoint, options=options, yarn_factor=float(factor[1]))
    assert model.engine.prepare(model.request([clip], "What?", max_new_tokens=40)).limit == 40
    model = StepAudio.load(checkpoint, options=options, yarn_factor=float(factor[1]) - 0.1)
    with pytest.raises(PromptError):
        model.engine.prepare(model.request([clip], "What?", max_new_tokens=4000))


@pytest.mark.parametrize("minutes", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_minutes_in_one_prompt(checkpoint, minutes):
    """By YaRN in a model of 4,096 positions; scores of the reply are those of a whole forward pass."""
    model = StepAudio.load(checkpoint, options=EngineOptions(max_rows=1), yarn_factor=4.0)
    clip = Audio(small.sound(60.0 * minutes))
    done = model.ask([clip], "What is it?", temperature=0.0, max_new_tokens=6)
    assert done.usage.audio_seconds == 60.0 * minutes
    assert minutes < 20 or done.usage.audio_tokens == 48 * 313
    expected = whole_pass(checkpoint, clip, done.token_ids, yarn_factor=4.0)
    np.testing.assert_allclose(done.log_probs, expected, atol=2e-4)


def whole_pass(checkpoint, clip: Audio, written, **options) -> np.ndarray:
    """Log-probabilities of written tokens behind the question, by one forward pass over all positions."""
    model, tokenizer = checkpoints.load(checkpoint, dtype=np.float32, **options)
    example = encode(Conversation((human(clip, "What is it?"),)), tokenizer, generate=True)
    size, length = example.num_tokens, example.num_tokens + len(written)
    data = collate([[example]], length=length, sound_rows=len(example.chunks), sound_samples=400_640)
    data.tokens[0, size:] = written
    positions = np.arange(length)[None]
    heard = model.encode_audio(*data.audio[:3])
    embeds = model.embed(data.tokens, heard, data.audio.slots)
    hidden = model.decoder(embeds, positions, np.ones_like(data.tokens))[0, size - 1 : -1]
    logits = np.asarray(model.decoder.logits(hidden), np.float64)[:, : tokenizer.vocab_size]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(len(written)), list(written)]
