"""What an assistant's message holds beside its answer: reasoning under its names, think blocks, calls of tools."""

import json
from collections.abc import Mapping

import pytest

from stepaudio_jax.data import formats
from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human
from stepaudio_jax.text.tool_calls import Call, ToolCallParser
from tests.data import records
from tests.data.records import CLIP, same, tone

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SOUND = Audio(tone())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    records.write_sounds(path)
    return path


def parse(record: Mapping, folder):
    return formats.parse(record, Sounds([folder]), "set.jsonl:7")


def refused(record: Mapping, folder) -> str:
    with pytest.raises(RecordError, match=r"^set\.jsonl:7: ") as caught:
        parse(record, folder)
    return str(caught.value).removeprefix("set.jsonl:7: ")


def reply(**fields) -> dict:
    return {"messages": [Q, {**A, **fields}]}


def of_turns(*turns: Turn, **fields) -> Conversation:
    return Conversation(turns, **fields)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_any_of_its_names(folder, key):
    think = {key: " I hear one tone.\n"}
    made = [
        parse(reply(**think), folder).conversation,
        parse(reply(content=[{"type": "text", "text": "A"}], **think), folder).conversation,
        parse({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", **think}]}, folder),
        parse({"prompt": [Q], "completion": [{**A, **think}]}, folder),
        parse({"prompt": "Q", "chosen": [{**A, **think}], "rejected": "B"}, folder),
    ]
    for found in made:
        dialogue = found if isinstance(found, Conversation) else found.conversation
        assert same(dialogue, of_turns(human("Q"), assistant("A", think="I hear one tone.")))


def test_reasoning_in_two_places_must_be_the_same(folder):
    def think(**fields):
        return parse(reply(**fields), folder).conversation.turns[-1].think

    assert think(reasoning="a", thinking="a", reasoning_content=None) == "a"
    assert think(reasoning="a\n", content="<think>\na\n</think>\nA") == "a"
    assert think(reasoning="a", content="<think>\n\n</think>\nA", thinking="") == "a"
    assert refused(reply(reasoning_content="a", thinking="b"), folder) == (
        "messages[1].thinking: expected reasoning in one place, reasoning_content has another one"
    )
    assert "messages[1].content: expected reasoning in one place" in refused(
        reply(reasoning="a", content="<think>b</think>A"), folder
    )
    assert refused(reply(thinking={"a": 1}), folder) == "messages[1].thinking: expected text, found an object"


@pytest.mark.parametrize(
    "content",
    [
        "<think>x</think>A<think>y</think>B",
        "<think>x</think><think>y</think>B",
        "Sure. <think>x</think>A",
        "Sure. <think>x",
        "<think>x",
        "<think>x</think>A</think>",
        "<think>x<think>y</think>A",
        [{"type": "text", "text": "Sure."}, {"type": "text", "text": "<think>x</think>A"}],
        [{"type": "text", "text": "<think>x</think>A"}, {"type": "text", "text": "<think>y</think>B"}],
        [{"type": "audio", "audio": CLIP}, {"type": "text", "text": "<think>x</think>A"}],
        [{"type": "text", "text": "<think>x"}, {"type": "audio", "audio": CLIP}, {"type": "text", "text": "</think>A"}],
    ],
)
def test_another_think_block_is_refused_wherever_a_reply_stands(folder, content):
    bad = {"role": "assistant", "content": content}
    places = [
        {"messages": [Q, bad]},
        {"messages": [Q, bad, Q, A]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": content}]},
        {"prompt": [Q], "completion": [bad]},
        {"prompt": [Q], "chosen": [A], "rejected": [bad]},
        {"messages": [Q, A], "rejected_messages": [Q, bad]},
    ]
    if isinstance(content, str):
        places += [{"query": "Q", "response": content}, {"messages": [Q, A], "rejected_response": content}]
    for record in places:
        assert "think" in refused(record, folder)


def test_a_think_block_may_be_cut_into_parts_of_text(folder):
    content = [
        {"type": "text", "text": "<think>x"},
        {"type": "text", "text": "</think>A"},
        {"type": "audio", "audio": CLIP},
    ]
    assert same(
        parse(reply(content=content), folder).conversation, of_turns(human("Q"), assistant("A", SOUND, think="x"))
    )


def test_tags_that_are_no_reasoning(folder):
    asked = {"role": "user", "content": "What does <think>x</think> do, <think>?"}
    assert parse({"messages": [asked, A]}, folder).conversation.turns[0].text == asked["content"]
    for key in ("reasoning", "thinking", "reasoning_content"):
        assert refused(reply(**{key: "a</think>b"}), folder) == (
            f"messages[1].{key}: expected reasoning without <think> tags, found one in it"
        )


def test_calls_of_tools_are_what_the_model_writes(folder):
    arguments = '{"text": "</tool_call>", "city": "Tromsø"}'
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"a": [1]}}}
    record = {
        "messages": [
            Q,
            {"role": "assistant", "content": None, "thinking": "Look.", "tool_calls": [call, other]},
            {"role": "tool", "tool_call_id": "1", "content": "9"},
            {"role": "tool", "content": ""},
            {**A, "tool_calls": "[]"},
            Q,
            {**A, "function_call": {"name": "h", "arguments": ""}},
        ]
    }
    found = parse(record, folder).conversation
    assert [turn.role for turn in found.turns] == [
        "human",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "human",
        "assistant",
    ]
    parser = ToolCallParser()
    read = parser.feed(found.turns[1].text) + parser.flush()
    assert read == [Call("f", arguments), Call("g", '{"a": [1]}')] and found.turns[1].think == "Look."
    assert found.turns[2].text == "9" and found.turns[4].text == "A"
    assert found.turns[6].text == "A<tool_call>function\nh\n{}</tool_call>"
    written = json.dumps({"name": "f", "arguments": {"a": 1}})
    for asked in (written, f"[{written}]"):
        swift = {"messages": [Q, {"role": "tool_call", "content": asked}, {"role": "tool_response", "content": "9"}, A]}
        assert parse(swift, folder).conversation.turns[1].text == '<tool_call>function\nf\n{"a": 1}</tool_call>'


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**A, "tool_calls": {"name": "f"}}, "messages[1].tool_calls: expected a list, found an object"),
        ({**A, "tool_calls": "f"}, "messages[1].tool_calls: expected JSON"),
        ({**A, "tool_calls": ["f"]}, "messages[1].tool_calls[0]: expected an object, found text"),
        ({**A, "tool_calls": [{"type": "custom"}]}, 'tool_calls[0].type: expected "function", found "custom"'),
        ({**A, "tool_calls": [{"function": {}}]}, "tool_calls[0].function.name: expected text, found nothing"),
        ({**A, "tool_calls": [{"function": {"name": "a b"}}]}, "tool_calls[0].function.name: expected up to 64"),
        (
            {**A, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "tool_calls[0].function.arguments: expected the JSON text of an object",
        ),
        (
            {**A, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "</think>"}'}}]},
            "tool_calls[0].function.arguments: expected no think tags",
        ),
        (
            {**Q, "tool_calls": [{"function": {"name": "f"}}]},
            "messages[1].tool_calls: expected none, only an assistant",
        ),
        ({**A, "content": None}, "messages[1].content: expected text or a list of parts, found nothing"),
        ({**A, "content": ""}, "messages[1].content: expected text or audio, found an empty assistant turn"),
    ],
)
def test_calls_that_are_none(folder, message, reason):
    assert reason in refused({"messages": [Q, message]}, folder)
