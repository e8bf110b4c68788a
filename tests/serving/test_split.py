"""Sound that does not fit into one prompt, over HTTP: split as a session splits it, or refused."""

import dataclasses

import pytest

from stepaudio_jax import checkpoints
from stepaudio_jax.inference import (
    Engine,
    EngineOptions,
    Finished,
    LongAudio,
    QueueFull,
    Request,
    SamplingParams,
    serving_dtype,
)
from stepaudio_jax.inference.long_audio import Plan, generate
from stepaudio_jax.serving import Settings
from stepaudio_jax.text import Audio, Conversation, human
from tests import small
from tests.serving.servers import CHAT, audio_part, encoded, error_of, serving, wav

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=16)
QUESTION = "What do you hear?"
LONG = small.sound(70.0)
SPLIT = LongAudio(overlap_seconds=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    model, tokenizer = checkpoints.load("tiny", dtype=serving_dtype())
    return Engine(model, tokenizer, EngineOptions(max_rows=2, prefill_tokens=128, max_length=512))


def of(split: LongAudio, question: str = QUESTION) -> Request:
    return Request(Conversation((human(Audio(LONG), question),)), GREEDY, long_audio=split)


@pytest.fixture(scope="module")
def alone(engine):
    """What a session answers, by merge; asked before the server owns the engine."""
    done = {}
    for merge in ("ask", "join"):
        *_, last = generate(engine, [of(dataclasses.replace(SPLIT, merge=merge))])
        assert isinstance(last, Finished)
        done[merge] = last.completion
    return done


@pytest.fixture(scope="module")
def server(engine, alone):
    with serving(engine, Settings(sampling=GREEDY)) as running:
        yield running


def ask(server, **fields):
    content = [audio_part(encoded(wav(LONG, subtype="PCM_24"))), {"type": "text", "text": QUESTION}]
    return server.http.post(CHAT, json={"messages": [{"role": "user", "content": content}]} | fields)


@pytest.mark.parametrize("merge", ["ask", "join"])
def test_the_answer_is_the_sessions(server, alone, merge):
    body = ask(server, long_audio={"overlap_seconds": 2, "merge": merge}).json()
    (choice,), expected = body["choices"], alone[merge]
    assert choice["message"]["content"] == expected.answer.strip()
    shown = [(each["start"], each["stop"], each["content"]) for each in choice["windows"]]
    assert shown == [(each.start, each.stop, each.completion.answer) for each in expected.windows]
    assert len(shown) > 1 and shown[0][0] == 0 and shown[-1][1] == 70
    assert body["usage"]["completion_tokens"] == expected.usage.completion_tokens


def test_streamed_it_says_how_far_it_is(server, alone):
    response = ask(server, long_audio={"overlap_seconds": 2}, stream=True, separate_reasoning=False)
    lines = response.text.splitlines()
    windows = len(alone["ask"].windows)
    assert f": the sound is heard in {windows} windows" in lines
    assert sum(line.startswith(": answered window") for line in lines) == windows
    assert lines[-2] == "data: [DONE]" and '"windows"' in lines[-4]


def test_several_replies_are_split_each(server, alone):
    choices = ask(server, long_audio={"overlap_seconds": 2}, n=2).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == [alone["ask"].answer.strip()] * 2


def test_unasked_it_is_refused_with_the_ways_out(server):
    for fields in ({}, {"long_audio": "refuse"}):
        error = error_of(ask(server, **fields), 400)
        assert error["code"] == "invalid_audio" and error["message"].endswith(
            '70.0 s of sound, more than the 40.96 s allowed; long_audio: "split" has longer sound heard in windows'
        )


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("halve", "long_audio"),
        ({"window_seconds": 0}, "long_audio.window_seconds"),
        ({"window_seconds": 10, "overlap_seconds": 9}, "long_audio"),
        ({"merge": "vote"}, "long_audio.merge"),
        ({"window_seconds": 3000}, "messages"),
    ],
)
def test_what_cannot_be_is_refused(server, asked, field):
    assert error_of(ask(server, long_audio=asked), 400)["param"] == field


def test_what_is_said_in_the_windows_of_a_transcription_is_joined(engine, server):
    form = {"file": ("long.wav", wav(LONG, subtype="PCM_24"))}
    assert "long" in error_of(server.http.post("/v1/audio/transcriptions", files=form), 400)["message"]
    found = server.http.post("/v1/audio/transcriptions", files=form, data={"long_audio": "split"}).json()["text"]
    request = of(LongAudio(merge="join"), Settings().transcribe)
    plan = Plan.of(engine, dataclasses.replace(request, thinking=False))
    assert plan is not None and len(plan.windows) > 1 and found
    bad = server.http.post("/v1/audio/transcriptions", files=form, data={"long_audio": "halve"})
    assert error_of(bad, 400)["param"] == "long_audio"


def test_the_operator_may_have_it_split_unasked(engine):
    with serving(engine, Settings(sampling=GREEDY, long_audio=SPLIT)) as running:
        assert ask(running).status_code == 200
        assert ask(running, long_audio="refuse").status_code == 400


def test_more_than_may_be_split_is_refused_before_it_is_heard(engine):
    with serving(engine, Settings(sampling=GREEDY, max_split_seconds=60)) as running:
        assert "60" in error_of(ask(running, long_audio="split"), 400)["message"]


def test_a_full_queue_does_not_lose_what_the_windows_answered(engine, alone, monkeypatch):
    """The queue refuses the merging request a few times."""
    add, refused = Engine.add, []

    def sometimes(self, prepared):
        if prepared.request.long_audio is None and "window" not in prepared.request.id and len(refused) < 3:
            refused.append(prepared.request.id)
            raise QueueFull("full")
        add(self, prepared)

    monkeypatch.setattr(Engine, "add", sometimes)
    with serving(engine, Settings(sampling=GREEDY)) as running:
        body = ask(running, long_audio={"overlap_seconds": 2}).json()
    assert len(refused) == 3
    assert body["choices"][0]["message"]["content"] == alone["ask"].answer.strip()


def test_a_client_that_goes_frees_all_windows(engine):
    with serving(engine, Settings(sampling=dataclasses.replace(GREEDY, max_new_tokens=200))) as running:
        content = [audio_part(encoded(wav(LONG, subtype="PCM_24")))]
        body = {"messages": [{"role": "user", "content": content}], "stream": True, "long_audio": "split"}
        with running.http.stream("POST", CHAT, json=body) as response:
            next(response.iter_text())
        running.wait_for(lambda found: not found["stepaudio_requests_running"] + found["stepaudio_requests_waiting"])
        assert running.wait_for(lambda found: not found["stepaudio_pages_used"])
