"""Records that users bring from elsewhere: read as the tools that wrote them mean it, or refused with the reason."""

import json
from collections.abc import Mapping

import numpy as np
import pytest

from stepaudio_jax.data import formats
from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.sounds import MAX_CLIPS, MAX_RECORD_SECONDS, RecordSounds, Sounds
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human, system
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


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"messages": [Q, A], "audios": [CLIP]}, (human(SOUND, "Q"), assistant("A"))),
        ({"messages": [Q, A], "audio": {"bytes": None, "path": CLIP}}, (human(SOUND, "Q"), assistant("A"))),
        ({"messages": [{**Q, "content": ""}, A], "audios": CLIP}, (human(SOUND), assistant("A"))),
        (
            {"messages": [{"role": "system", "content": "S"}, A, Q, A], "audios": [CLIP]},
            (system("S"), assistant("A"), human(SOUND, "Q"), assistant("A")),
        ),
        (
            {"messages": [{**Q, "content": [{"type": "text", "text": "Q"}]}, A], "audios": [CLIP]},
            (human(SOUND, "Q"), assistant("A")),
        ),
        (
            {"messages": [{**Q, "content": [{"type": "text", "text": "Q<audio>R"}]}, A], "audios": [CLIP]},
            (human("Q", SOUND, "R"), assistant("A")),
        ),
        ({"query": "Q", "response": "A", "audios": [CLIP]}, (human(SOUND, "Q"), assistant("A"))),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "audios": [CLIP]},
            (human(SOUND, "Q"), assistant("A")),
        ),
        ({"prompt": "Q", "completion": "A", "audios": [CLIP]}, (human(SOUND, "Q"), assistant("A"))),
    ],
)
def test_one_clip_without_a_place_goes_first(folder, record, turns):
    assert same(parse(record, folder).conversation, of_turns(*turns))


def test_clips_that_could_go_anywhere_are_refused(folder):
    part = {"type": "audio", "audio": CLIP}
    for record, reason in [
        ({"messages": [Q, A], "audios": [CLIP, CLIP]}, "audios: 0 <audio> in the text but 2 clips"),
        ({"messages": [{**Q, "content": "<audio>"}, A], "audios": [CLIP, CLIP]}, "audios: 1 <audio> in the text but 2"),
        (
            {"messages": [{**Q, "content": "<audio><audio>"}, A], "audios": [CLIP]},
            "audios: 2 <audio> in the text but 1",
        ),
        ({"messages": [{**Q, "content": [part]}, A], "audios": [CLIP]}, "audios: 0 <audio> in the text but 1 clips"),
        ({"messages": [A], "audios": [CLIP]}, "audios: 0 <audio> in the text but 1 clips"),
        ({"messages": [{**Q, "content": [{"type": "audio"}]}, A]}, "audios: 1 <audio> in the text but 0 clips"),
        ({"messages": [{**Q, "content": [part]}, {**A, "content": "<audio>"}]}, "audios: 1 <audio> in the text but 0"),
    ]:
        assert reason in refused(record, folder)


@pytest.mark.parametrize("audios", [{}, {"audios": []}, {"audios": None, "audio": {"bytes": None, "path": None}}])
def test_audio_is_a_word_in_a_record_without_sound(folder, audios):
    words = "What is the <audio> element? <audio>\n"
    asked, told = human(words), assistant("<audio> plays.")
    for record in [
        {"messages": [{**Q, "content": words}, {**A, "content": "<audio> plays."}]},
        {"conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": "<audio> plays."}]},
        {"query": words, "response": "<audio> plays."},
        {"prompt": words, "completion": "<audio> plays."},
    ]:
        assert same(parse({**record, **audios}, folder).conversation, of_turns(asked, told))


def test_an_empty_system_message_is_none(folder):
    for content in ("", " \n", None, []):
        empty = {"role": "system", "content": content}
        assert same(parse({"messages": [empty, Q, A]}, folder).conversation, of_turns(human("Q"), assistant("A")))
        with_column = parse({"messages": [empty, Q, A], "system": "S"}, folder)
        assert same(with_column.conversation, of_turns(system("S"), human("Q"), assistant("A")))
    assert same(parse({"messages": [Q, A], "system": ""}, folder).conversation, of_turns(human("Q"), assistant("A")))
    assert "empty system message only" in refused({"messages": [{"role": "system", "content": ""}]}, folder)


@pytest.mark.parametrize("none", [None, "", " ", "[]", " [ ]\n", "null", "{}", [], {}])
def test_no_tools(folder, none):
    assert parse({"messages": [Q, A], "tools": none}, folder).conversation.tools is None


def test_tools_in_any_writing(folder):
    schema = {"type": "function", "function": {"name": "wetter", "description": "für Städte"}}
    for tools in ([schema], [json.dumps(schema)], json.dumps([schema]), json.dumps([schema], ensure_ascii=False)):
        found = parse({"messages": [Q, A], "tools": tools}, folder).conversation.tools
        assert json.loads(found or "") == [schema]
    assert "tools[0]: expected JSON" in refused({"messages": [Q, A], "tools": ["weather"]}, folder)


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


def test_the_older_form_of_swift(folder):
    record = {
        "query": "C",
        "response": "<think>t</think>D",
        "history": [["A", "B"]],
        "system": "S",
        "rejected_response": "E",
    }
    sample = parse(record, folder)
    before = system("S"), human("A"), assistant("B"), human("C")
    assert same(sample.conversation, of_turns(*before, assistant("D", think="t")))
    assert sample.rejected is not None and same(sample.rejected, of_turns(*before, assistant("E")))
    prompt = formats.parse({"query": "C"}, Sounds([folder]), "x:1", prompts=True)
    assert same(prompt.conversation, of_turns(human("C")))
    assert "history[0]: expected [query, response]" in refused(
        {"query": "C", "response": "D", "history": ["A"]}, folder
    )
    assert "query: expected text, found a list" in refused({"query": [], "response": "D"}, folder)


PAIR = of_turns(human("Q"), assistant("A")), of_turns(human("Q"), assistant("B"))
B = {**A, "content": "B"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": [A], "rejected": [B], "data_source": "x"},
        {"prompt": [Q], "chosen": "A", "rejected": [B]},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "Q", "chosen": [Q, A], "rejected": [Q, B]},
        {"messages": [Q], "chosen": A, "rejected": B},
        {"messages": [{**Q, "content": [{"type": "text", "text": "Q"}]}, A], "rejected_response": "B"},
    ],
)
def test_pairs_as_trl_llama_factory_and_swift_write_them(folder, record):
    sample = parse(record, folder)
    extra = {"data_source": "x"} if "data_source" in record else {}
    chosen, rejected = (Conversation(side.turns, extra=extra) for side in PAIR)
    assert same(sample.conversation, chosen)
    assert sample.rejected is not None and same(sample.rejected, rejected)


def test_a_worse_dialogue_has_the_sound_of_the_better_one(folder):
    asked = {**Q, "content": "<audio>Q"}
    sample = parse({"messages": [asked, A], "rejected_messages": [asked, B], "audios": [CLIP]}, folder)
    assert sample.rejected is not None
    assert same(sample.rejected, of_turns(human(SOUND, "Q"), assistant("B")))
    assert sample.rejected.audio[0].samples is sample.conversation.audio[0].samples  # stored and encoded once


def test_what_is_marked_as_bad_is_not_learned(folder):
    assert "label: expected a completion" in refused({"prompt": "Q", "completion": "A", "label": False}, folder)
    assert "kto_tag: expected a reply" in refused({"messages": [Q, A], "kto_tag": False}, folder)
    assert "expected a column prompt beside" in refused(
        {"chosen": "Human: Q A: A", "rejected": "Human: Q A: B"}, folder
    )
    turns = parse({"messages": [Q, {**A, "weight": 0}, Q, {**A, "weight": 1}]}, folder).conversation.turns
    assert [turn.loss for turn in turns] == [None, False, None, True] and not turns[1].extra


def test_a_record_has_bounds(folder, monkeypatch):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in refused({"messages": [Q, A], "tags": deep}, folder)
    many = {"messages": [{**Q, "content": "<audio>" * (MAX_CLIPS + 1)}, A], "audios": [CLIP] * (MAX_CLIPS + 1)}
    assert f"more than the {MAX_CLIPS:,} clips" in refused(many, folder)

    class Hours:
        def load(self, reference, what):
            return Audio(np.broadcast_to(np.float32(0), (3600 * 16000,)), what)

        load_base64 = load

    sounds = RecordSounds(Hours())
    clips = [sounds.load(name, name) for name in "aabcd"]
    assert clips[0] is clips[1] and MAX_RECORD_SECONDS == 4 * 3600
    with pytest.raises(ValueError, match="e: more than the 14,400 s of sound that a record may have"):
        sounds.load_base64("e", "e")
