"""OpenAI's own client against the shipped model: every answer must be what its types say, and true."""

import io
import json
import math
import shutil
import subprocess

import httpx
import numpy as np
import openai
import pytest
from openai.types import Completion
from openai.types.audio import Transcription, TranscriptionVerbose
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from stepaudio_jax import checkpoints
from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams, serving_dtype
from stepaudio_jax.miniature import make_question
from stepaudio_jax.serving import Settings
from stepaudio_jax.text import Conversation, human
from tests.serving.servers import CHAT, audio_part, encoded, serving, wav

SUM = [{"role": "user", "content": "What is 4 + 5?"}]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=200)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model, tokenizer = checkpoints.load("tiny", dtype=serving_dtype())
    return Engine(model, tokenizer, EngineOptions(max_rows=2, prefill_tokens=128))


@pytest.fixture(scope="module")
def alone(engine):
    """What the engine writes without a server, by prompt; asked before the server owns it."""
    conversations = [Conversation((human("What is 4 + 5?"),))]
    done = [
        event for event in engine.generate([Request(c, GREEDY) for c in conversations]) if isinstance(event, Finished)
    ]
    return done[0].completion


@pytest.fixture(scope="module")
def server(engine, alone):
    with serving(engine, Settings(model_names=("tiny", "audio"), sampling=GREEDY)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def whole(client, **fields) -> ChatCompletion:
    """A whole answer, its JSON held against the client's own types."""
    raw = client.chat.completions.with_raw_response.create(**({"model": "tiny", "messages": SUM} | fields))
    return ChatCompletion.model_validate(raw.http_response.json())


def streamed(client, **fields) -> list[ChatCompletionChunk]:
    events = client.chat.completions.create(**({"model": "tiny", "messages": SUM, "stream": True} | fields))
    return [ChatCompletionChunk.model_validate(event.model_dump(exclude_unset=True)) for event in events]


def message(chunks: list[ChatCompletionChunk], index: int = 0) -> dict:
    """What a client puts together from chunks."""
    made = {"content": "", "reasoning_content": "", "finish": []}
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == index):
        made["content"] += choice.delta.content or ""
        made["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
        made["finish"] += [choice.finish_reason] if choice.finish_reason else []
    return made


def test_an_answer_with_its_reasoning_apart(client, alone):
    answer = whole(client, extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    assert choice.message.content == alone.answer == "9"
    assert choice.message.reasoning_content == alone.think != ""  # type: ignore[attr-defined]
    assert tuple(choice.token_ids) == alone.token_ids  # type: ignore[attr-defined]
    assert choice.finish_reason == "stop" and answer.model == "tiny"
    sizes = answer.usage
    assert (sizes.prompt_tokens, sizes.completion_tokens) == (alone.usage.prompt_tokens, len(alone.token_ids))
    assert 0 < sizes.completion_tokens_details.reasoning_tokens < sizes.completion_tokens


def test_an_answer_as_it_was_written(client, alone):
    for fields in ({"separate_reasoning": False}, {"separate_reasoning": False, "skip_special_tokens": False}):
        content = whole(client, extra_body=fields).choices[0].message.content
        assert content == alone.text and content.count("</think>") == 1
        assert message(streamed(client, extra_body=fields))["content"] == alone.text
    hidden = whole(client, extra_body={"include_reasoning": False}).choices[0].message
    assert hidden.content == "9" and not hasattr(hidden, "reasoning_content")


def test_a_streamed_answer_is_the_whole_one(client, alone):
    chunks = streamed(client, stream_options={"include_usage": True})
    assert message(chunks) == {"content": alone.answer, "reasoning_content": alone.think, "finish": ["stop"]}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(alone.token_ids)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in streamed(client))


@pytest.mark.parametrize("stream", [False, True])
def test_several_replies_differ_by_their_seed(client, stream):
    fields = {"n": 3, "temperature": 2.0, "seed": 11, "max_tokens": 12, "extra_body": {"return_token_ids": True}}

    def ids(**more) -> list[list[int]]:
        if not stream:
            return [choice.token_ids for choice in whole(client, **(fields | more)).choices]  # type: ignore[attr-defined]
        found: dict[int, list[int]] = {}
        for chunk in streamed(client, **(fields | more)):
            for choice in chunk.choices:
                found.setdefault(choice.index, []).extend(choice.token_ids)  # type: ignore[attr-defined]
        return [found[i] for i in sorted(found)]

    three = ids()
    assert len({tuple(reply) for reply in three}) == 3
    assert ids(n=1, seed=12)[0] == three[1] and ids() == three
    assert ids(seed=None) != ids(seed=None)


def test_scores_of_tokens(client, alone):
    answer = whole(client, logprobs=True, top_logprobs=3)
    scores = answer.choices[0].logprobs.content
    assert [score.logprob for score in scores] == pytest.approx(alone.log_probs, abs=1e-4)
    for score in scores:
        assert len(score.top_logprobs) == 3 and score.top_logprobs[0].token == score.token  # greedy
        assert [t.logprob for t in score.top_logprobs] == sorted((t.logprob for t in score.top_logprobs), reverse=True)
        assert sum(math.exp(t.logprob) for t in score.top_logprobs) <= 1.001
    assert bytes(b for score in scores[:-1] for b in score.bytes).decode() == alone.text
    chunks = streamed(client, logprobs=True, top_logprobs=3)
    again = [s for c in chunks for choice in c.choices if choice.logprobs for s in choice.logprobs.content]
    assert [s.model_dump() for s in again] == [s.model_dump() for s in scores]
    assert whole(client).choices[0].logprobs is None


def test_sound_is_heard(client, server):
    """Questions about fresh scenes: most must be answered truly."""
    right = 0
    for seed in range(6):
        question = make_question(np.random.default_rng([7, seed]), "count")
        (asked,) = question.prompt.turns
        parts = [audio_part(encoded(wav(asked.audio[0].samples))), {"type": "text", "text": asked.text}]
        answer = whole(client, messages=[{"role": "user", "content": parts}])
        right += answer.choices[0].message.content == question.answer
        assert answer.usage.prompt_tokens_details.audio_tokens > 0
    assert right >= 5
    assert server.metrics()["stepaudio_audio_seconds_total"] > 1


def test_stops_budgets_and_lengths(client, alone):
    cut = whole(client, stop=" =", extra_body={"separate_reasoning": False}).choices[0]
    assert cut.message.content == alone.text.partition(" =")[0] and cut.stop_reason == " ="  # type: ignore[attr-defined]
    first = alone.token_ids[2]
    ended = whole(client, extra_body={"stop_token_ids": [first], "return_token_ids": True}).choices[0]
    assert ended.token_ids == list(alone.token_ids[:3]) and ended.stop_reason == first  # type: ignore[attr-defined]
    short = whole(client, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert whole(client, max_completion_tokens=2).usage.completion_tokens == 2
    hasty = whole(client, extra_body={"think_budget": 0}).choices[0].message
    assert not getattr(hasty, "reasoning_content", "") and hasty.content
    blunt = whole(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
    assert not getattr(blunt, "reasoning_content", "") and blunt.content


def test_a_message_is_continued(client, alone):
    begun = [*SUM, {"role": "assistant", "content": "<think>\n" + alone.text[:4]}]
    fields = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
    choice = whole(client, messages=begun, extra_body=fields).choices[0]
    assert choice.message.content == "9" and choice.message.reasoning_content  # type: ignore[attr-defined]


def test_a_conversation_with_tools(client):
    history = [
        {"role": "system", "content": "Be brief."},
        *SUM,
        {"role": "assistant", "content": "9", "reasoning_content": "4 + 5 = 9."},
        {"role": "user", "content": "What is 5 + 4?"},
    ]
    answer = whole(client, messages=history, tools=TOOLS, tool_choice="auto", parallel_tool_calls=False)
    bare = whole(client, messages=history)
    assert answer.usage.prompt_tokens > bare.usage.prompt_tokens + 20
    none = whole(client, messages=history, tools=TOOLS, tool_choice="none")
    assert none.usage.prompt_tokens == bare.usage.prompt_tokens
    assert message(streamed(client, messages=history, tools=TOOLS))["content"] == (
        answer.choices[0].message.content or ""
    )


def test_completions(client, server, engine, alone):
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="What is", max_tokens=6, logprobs=2, echo=True
    )
    done = Completion.model_validate(raw.http_response.json())
    choice = done.choices[0]
    assert choice.text.startswith("What is") and done.usage.completion_tokens == 6
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 6
    assert choice.logprobs.text_offset[0] == len("What is")
    chunks = list(client.completions.create(model="tiny", prompt="What is", max_tokens=6, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    prompts = ["What is", "How many"]
    two = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=3)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3] and two.choices[0].text == two.choices[1].text
    # The chat prompt, written by hand: special strings are special here.
    by_hand = "<|BOT|>human\nWhat is 4 + 5?<|EOT|><|BOT|>assistant\n<think>\n"
    for prompt in (by_hand, engine.tokenizer.encode(by_hand, allow_special=True)):
        assert client.completions.create(model="tiny", prompt=prompt, max_tokens=200).choices[0].text == alone.text


def test_transcriptions(client, server):
    clip = ("scene.wav", wav(make_question(np.random.default_rng(3), "count").conversation.audio[0].samples))
    fields = {"model": "tiny", "file": clip, "prompt": "Two tones.", "language": "en"}
    raw = client.audio.transcriptions.with_raw_response.create(**fields)
    plain = Transcription.model_validate(raw.http_response.json())
    assert plain.usage.input_token_details.audio_tokens > 0
    raw = client.audio.transcriptions.with_raw_response.create(**fields, response_format="verbose_json")
    verbose = TranscriptionVerbose.model_validate(raw.http_response.json())
    assert verbose.text == plain.text and verbose.language == "en" and verbose.duration == pytest.approx(2, abs=2)
    assert client.audio.transcriptions.create(**fields, response_format="text").strip() == plain.text
    events = list(client.audio.transcriptions.create(**fields, stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == plain.text
    assert "".join(event.delta for event in events[:-1]) == plain.text


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "audio"]
    assert client.models.retrieve("audio").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        client.chat.completions.create(model="tiny", messages=SUM, temperature=-1)
    assert raised.value.param == "temperature" and raised.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="expected tiny, audio"):
        client.chat.completions.create(model="gpt-4", messages=SUM)
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a b c " * 3000}])


def test_what_the_released_client_sends(server, alone):
    """Its fields, and its reading of events: lines of "data: ", up to [DONE]."""
    body = {
        "model": "tiny",
        "messages": [{"role": "human", "content": [{"type": "text", "text": "What is 4 + 5?"}]},
                     {"role": "assistant", "content": "<think>\n", "eot": False}],
        "stream": True, "stop_token_ids": [1], "max_tokens": 200, "temperature": 0, "repetition_penalty": 1.0,
        "skip_special_tokens": False, "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip
    text, done = "", False
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=600) as response:
        for line in filter(None, response.iter_lines()):
            if done := line == "data: [DONE]":
                break
            delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
            text += delta.get("content", "")
    assert done and text == "9"


def test_plain_curl(server):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    body = json.dumps({"messages": SUM})
    command = ["curl", "-sS", "--fail", f"{server.url}{CHAT}", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "9"
    clip = wav(np.zeros(8000, np.float32))
    command = [
        "curl",
        "-sS",
        f"{server.url}/v1/audio/transcriptions",
        "-F",
        "file=@-;filename=a.wav",
        "-F",
        "response_format=text",
    ]
    done = subprocess.run(command, input=clip, capture_output=True, timeout=600, check=True)
    assert b"error" not in done.stdout


def test_what_was_counted(server):
    found = server.metrics()
    assert found[f"stepaudio_requests_total {CHAT} 200"] > 10
    for name in ("time_to_first_token_seconds", "inter_token_seconds", "queue_seconds"):
        assert found[f"stepaudio_{name}_count"] > 10, name
    assert found["stepaudio_generated_tokens_total"] > 100 and found["stepaudio_prompt_tokens_total"] > 100
    assert found["stepaudio_pages_used"] == 0
    assert found["stepaudio_pages_free"] + found["stepaudio_pages_cached"] == found["stepaudio_pages"]


def test_the_file_of_a_form_may_have_any_name(server):
    files = {"file": ("", io.BytesIO(wav(np.zeros(8000, np.float32))))}
    assert httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": ("Ünï.wav", files["file"][1])}).is_success
