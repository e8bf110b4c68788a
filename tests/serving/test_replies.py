"""Pieces of a choice: however the text arrives, the same comes out, and nothing is lost."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.inference import Completion, Finished, SamplingParams, TextDelta, TokenScore, Usage
from stepaudio_jax.serving.replies import Choice, join, usage
from stepaudio_jax.serving.scores import TokenNames
from stepaudio_jax.serving.tool_calls import Call, ToolCallParser, write_call
from tests import small

CALL = write_call("get_weather", '{"city": "Oslo"}')
TEXTS = st.lists(
    st.sampled_from(["It rains. ", CALL, "<tool_call>", "</tool_call>", "<tool_", "function\nf\n{}", "<", " \n"]),
    max_size=6,
).map("".join)


def cut(draw, text: str) -> list[str]:
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def merged(found: list[str | Call]) -> list[str | Call]:
    out: list[str | Call] = []
    for piece in found:
        if isinstance(piece, str) and out and isinstance(last := out[-1], str):
            out[-1] = last + piece
        else:
            out.append(piece)
    return out


@given(st.data(), TEXTS)
def test_calls_are_found_however_the_text_is_cut(data, text):
    whole, pieces = ToolCallParser(), ToolCallParser()
    expected = merged(whole.feed(text) + whole.flush())
    found = merged([piece for part in cut(data.draw, text) for piece in pieces.feed(part)] + pieces.flush())
    assert found == expected
    written = "".join(p if isinstance(p, str) else write_call(p.name, p.arguments) for p in found)
    assert "".join(written.split()) == "".join(text.split())


def test_what_is_no_call_stays_text():
    for text in ("<tool_call>function\nf\nnot json</tool_call>", "<tool_call>function\nf\n[1]</tool_call>",
                 "<tool_call>{}</tool_call>", "<tool_call>function\na b\n{}</tool_call>", CALL[:-1]):  # fmt: skip
        parser = ToolCallParser()
        assert merged(parser.feed(text) + parser.flush()) == [text]


def completion(tokens: int, stop: str = "<|EOT|>", **fields) -> Completion:
    made = {
        "request_id": "a",
        "token_ids": tuple(range(tokens)),
        "log_probs": (-1.0,) * tokens,
        "forced": (False,) * tokens,
        "finish_reason": "stop",
        "stop_reason": stop,
        "usage": Usage(0, 0, 5, tokens),
        "complete": True,
    } | dict.fromkeys(("text", "think", "answer"), "")
    return Completion(**(made | fields))


def feed(choice: Choice, parts: list[tuple[str, str]], end: Completion):
    pieces = []
    for at, (part, text) in enumerate(parts):
        pieces += choice.feed(TextDelta("a", part, text, (TokenScore(at, -1.0),)))
    return pieces + choice.feed(Finished(end))


@given(st.data(), st.text(" \nab", max_size=12), st.text(" \nab", max_size=12))
def test_parts_are_stripped_as_the_completion_is(data, think, answer):
    parts = [("think", p) for p in cut(data.draw, think)] + [("answer", p) for p in cut(data.draw, answer)]
    choice = Choice(0, SamplingParams(), "apart")
    pieces = feed(choice, parts, completion(len(parts) + 1))
    message = join(pieces)
    assert message.get("reasoning_content", "") == think.strip() and message["content"] == answer.strip()
    assert [s.token_id for piece in pieces for s in piece.scores] == list(range(len(parts) + 1))  # each once, in order
    assert [piece.finish_reason for piece in pieces][-1] == "stop" and pieces[-1].delta == {}


def test_thinking_can_be_left_out_or_in():
    parts = [("think", "Hm.\n"), ("answer", "Two")]
    assert join(feed(Choice(0, SamplingParams(), "none"), parts, completion(2))) == {
        "role": "assistant",
        "content": "Two",
    }
    inline = [("answer", "Hm.\n</think>\n"), ("answer", "Two")]  # as the engine gives what it does not split
    assert join(feed(Choice(0, SamplingParams(), "inline"), inline, completion(2)))["content"] == "Hm.\n</think>\nTwo"


def test_calls_end_a_reply_as_calls():
    choice = Choice(0, SamplingParams(), "apart", tools=True)
    pieces = feed(choice, [("think", "Look."), ("answer", "Wait. " + CALL + CALL)], completion(3))
    message = join(pieces)
    assert message["content"] == "Wait. " and pieces[-1].finish_reason == "tool_calls"
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"city": "Oslo"}] * 2
    assert [p.delta["tool_calls"][0]["index"] for p in pieces if "tool_calls" in p.delta] == [0, 1]


@pytest.mark.parametrize(
    ("sampling", "end", "expected"),
    [
        (SamplingParams(), completion(2), None),
        (SamplingParams(stop=("END",)), completion(2, "END"), "END"),
        (SamplingParams(stop_token_ids=(1,)), completion(2, "x"), 1),
        (SamplingParams(stop_token_ids=(1,)), completion(2, "length", finish_reason="length"), None),
    ],
)
def test_the_stop_that_was_asked_for_is_named(sampling, end, expected):
    assert Choice(0, sampling, "apart").feed(Finished(end))[-1].stop_reason == expected


def test_prompts_are_counted_once():
    choices = [Choice(i, SamplingParams(), "apart") for i in range(4)]
    for i, choice in enumerate(choices):
        choice.feed(Finished(completion(3, usage=Usage(1.0, 2, 10 if i < 2 else 20, 3))))
    found = usage(choices, prompts=2)
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (30, 12, 42)
    assert found["prompt_tokens_details"]["audio_tokens"] == 4


def test_tokens_have_the_bytes_they_stand_for():
    tokenizer = small.tokenizer()
    names = TokenNames(tokenizer)
    for text in ("How many tones?", "Köln, 東京 🎵", "<|EOT|>\n\t"):
        ids = tokenizer.encode(text)
        assert bytes(byte for token in ids for byte in names.bytes(token)).decode() == text
    assert bytes(names.bytes(tokenizer.end_of_turn)) == b"<|EOT|>"
