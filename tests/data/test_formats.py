"""Records of every format become the conversations they describe; broken ones are refused with place and reason."""

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data import formats
from stepaudio_jax.data.reading import read
from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Audio, Conversation, Text, Turn, assistant, human, system
from tests.data import records
from tests.data.records import CLIP, same, tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("formats")
    records.write_sounds(path)
    return path


def parse(record, folder, **options):
    return formats.parse(record, Sounds([folder]), "set.jsonl:7", **options)


CLIPS = Audio(tone()), Audio(tone(0.25))
ASKED = human(CLIPS[0], "How many?")

WHOLE = {  # what it shows: (record, dialogue, the same with the worse reply)
    "swift": (
        records.swift(reply="<think>\nI hear.\n</think>\n\nTwo.", id=7, tags=["a"]),
        Conversation((ASKED, assistant("Two.", think="I hear.")), extra={"id": 7, "tags": ["a"]}),
        None,
    ),
    "swift of several turns": (
        {
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "First <audio> then <audio>?", "name": "Ann"},
                {"role": "assistant", "content": "Yes.", "loss": False},
                {"role": "user", "content": "And <audio>"},
                {"role": "assistant", "content": "No.", "loss": True, "reasoning_content": " Hm. "},
            ],
            "audios": [CLIP, "other.flac", f"./{CLIP}"],
            "tools": [{"type": "function"}],
        },
        Conversation(
            (
                system("Be brief."),
                Turn(
                    "human",
                    (Text("First "), CLIPS[0], Text(" then "), CLIPS[1], Text("?")),
                    extra={"name": "Ann"},
                ),
                assistant("Yes.", loss=False),
                human("And ", CLIPS[0]),
                assistant("No.", think="Hm.", loss=True),
            ),
            tools='[{"type": "function"}]',
        ),
        None,
    ),
    "swift, a rejected response": (
        records.swift(rejected_response="<think>Guess.</think>One."),
        Conversation((ASKED, assistant("Two."))),
        Conversation((ASKED, assistant("One.", think="Guess."))),
    ),
    "swift, rejected messages": (
        records.swift(
            rejected_messages=[{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "One."}],
            rejected_audios=["other.flac"],
        ),
        Conversation((ASKED, assistant("Two."))),
        Conversation((human(CLIPS[1], "?"), assistant("One."))),
    ),
    "swift, a tool": (
        {
            "messages": [
                {"role": "user", "content": "Rain?"},
                {"role": "tool_call", "content": '{"name": "weather"}'},
                {"role": "tool_response", "content": '"dry"'},
                {"role": "assistant", "content": "No."},
            ],
            "tools": '[{"type": "function"}]',
        },
        Conversation(
            (human("Rain?"), assistant('{"name": "weather"}'), Turn("tool", (Text('"dry"'),)), assistant("No.")),
            tools='[{"type": "function"}]',
        ),
        None,
    ),
    "sharegpt": (
        records.sharegpt(system="Be brief.", split="train"),
        Conversation((system("Be brief."), ASKED, assistant("Two.")), extra={"split": "train"}),
        None,
    ),
    "sharegpt, a pair": (
        {
            "conversations": [{"from": "human", "value": "Two?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        Conversation((human("Two?"), assistant("Yes."))),
        Conversation((human("Two?"), assistant("No."))),
    ),
    "chat, a path": (records.chat(), Conversation((ASKED, assistant("Two."))), None),
    "chat, a clip beside": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio"}, "?"]},
                {"role": "assistant", "content": "Two."},
            ],
            "audio": {"bytes": None, "path": CLIP},
        },
        Conversation((human(CLIPS[0], "?"), assistant("Two."))),
        None,
    ),
    "chat, an array": (
        records.chat(audio={"array": tone().tolist(), "sampling_rate": 16000, "path": None}),
        Conversation((ASKED, assistant("Two."))),
        None,
    ),
    "chat, 16 bit integers of two channels": (
        records.chat(audio={"array": np.stack([tone() * 32768, tone()], 1).astype(np.int64), "sampling_rate": 16000}),
        Conversation((ASKED, assistant("Two."))),
        None,
    ),
    "chat, prompt and reply": (
        {"prompt": [{"role": "user", "content": "Two?"}], "completion": [{"role": "assistant", "content": "Yes."}]},
        Conversation((human("Two?"), assistant("Yes."))),
        None,
    ),
    "chat, a pair": (
        {
            "prompt": [{"role": "user", "content": [{"type": "audio", "path": CLIP}]}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        Conversation((human(CLIPS[0]), assistant("Yes."))),
        Conversation((human(CLIPS[0]), assistant("No."))),
    ),
    "chat, a pair of whole dialogues": (
        {
            "prompt": "Two?",
            "chosen": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "No."}],
        },
        Conversation((human("Two?"), assistant("Yes."))),
        Conversation((human("Two?"), assistant("No."))),
    ),
    "verl": (
        {**records.verl(), "data_source": "mini", "ability": "count", "extra_info": {"index": 3}},
        Conversation(
            (ASKED, assistant("Two.")),
            extra={
                "reward_model": {"ground_truth": "2"},
                "data_source": "mini",
                "ability": "count",
                "extra_info": {"index": 3},
            },
        ),
        None,
    ),
}


@pytest.mark.parametrize("record, dialogue, rejected", WHOLE.values(), ids=WHOLE.keys())
def test_a_record_is_the_dialogue_it_describes(folder, record, dialogue, rejected):
    sample = parse(record, folder)
    assert same(sample.conversation, dialogue)
    assert (sample.rejected is None) == (rejected is None)
    assert rejected is None or same(sample.rejected, rejected)
    assert sample.where == "set.jsonl:7"


def test_openai_parts(folder):
    sound = records.in_base64(folder / CLIP)
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}}
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    content = [part, {"type": "text", "text": "How many?"}, url]
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Two."}]}
    asked = human(CLIPS[0], "How many?", CLIPS[0])
    assert same(parse(record, folder).conversation, Conversation((asked, assistant("Two."))))
    part["input_audio"]["data"] = sound[:400] + "*"
    with pytest.raises(RecordError, match=r"set\.jsonl:7: messages\[0\]\.content\[0\]: not base64"):
        parse(record, folder)
    part["input_audio"] = sound
    with pytest.raises(RecordError, match=r"content\[0\]\.input_audio: expected an object, found text"):
        parse(record, folder)


def test_reasoning_is_split_from_the_reply(folder):
    def split(reply):
        turn = parse({"messages": [{"role": "assistant", "content": reply}]}, folder).conversation.turns[0]
        return turn.think, turn.text

    assert split("<think>a\n\nb</think>\n\nc") == ("a\n\nb", "c")
    assert split("a</think>b") == ("a", "b")  # the prompt template had opened it
    assert split("<think>\n\n</think>\n\nb") == (None, "b")


def test_prompts_need_no_reply(folder):
    record = {"prompt": [{"role": "user", "content": "How many?"}], "reward_model": {"ground_truth": "2"}}
    assert same(
        parse(record, folder, prompts=True).conversation,
        Conversation((human("How many?"),), extra={"reward_model": {"ground_truth": "2"}}),
    )
    with pytest.raises(RecordError, match="no assistant turn"):
        parse(record, folder)


def test_a_pair_must_differ(folder):
    with pytest.raises(RecordError, match="rejected_response: the same as the preferred reply"):
        parse(records.swift(rejected_response="Two."), folder)


def test_columns_that_json_lacks_are_kept_in_words(folder):
    import datetime

    extra = {"when": datetime.date(2026, 1, 2), "image": b"\x00\xff", "vector": np.arange(3), "none": None}
    kept = parse(records.swift(**extra), folder).conversation.extra
    assert json.loads(json.dumps(kept)) == {"when": "2026-01-02", "image": "AP8=", "vector": [0, 1, 2]}


def test_a_format_can_be_named(folder):
    with pytest.raises(RecordError, match="conversations: expected a list, found nothing"):
        parse(records.swift(), folder, format="sharegpt")


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet", "arrayrecord"])
@pytest.mark.parametrize("name", records.MAKE)
def test_broken_records_are_set_aside_with_place_and_reason(folder, tmp_path, name, container):
    write = {
        "jsonl": lambda path, record: records.write_lines(path, [record]),
        "json": lambda path, record: records.write_lines(path, [[record]]),
        "parquet": lambda path, record: records.write_parquet(path, [record]),
        "arrayrecord": lambda path, record: records.write_array_record(path, [record]),
    }[container]
    sounds = Sounds([folder])
    good = write(tmp_path / f"good.{container}", records.MAKE[name]())
    ((where, record),) = read([good])
    assert formats.parse(record, sounds, where).conversation.audio
    for fault, (make, reason) in records.FAULTS.items():
        path = write(tmp_path / f"{fault}.{container}", make(name))
        ((where, record),) = read([path])
        assert where == f"{path}:1"
        with pytest.raises(RecordError, match=f"^{re.escape(where)}: .*{reason}") as caught:
            formats.parse(record, sounds, where)
        assert "\n" not in str(caught.value)


def test_reasons_are_short_and_hold_nothing_that_moves_a_terminal(folder):
    with pytest.raises(RecordError) as caught:
        parse(records.swift(role="\x1b[2J\x07" + "x" * 10_000), folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


FIELDS = sorted({key for record, _, _ in WHOLE.values() for key in record} | {"role", "content", "from", "value"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "assistant", "<audio>", CLIP]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spoilt(draw):
    """A whole record with something else in one place of it."""
    record = copy.deepcopy(draw(st.sampled_from([record for record, _, _ in WHOLE.values()])))
    inside: Any = record
    while True:
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        key = draw(st.sampled_from(keys))
        if not isinstance(inside[key], dict | list) or not inside[key] or draw(st.booleans()):
            inside[key] = draw(VALUES)
            return record
        inside = inside[key]


ANYTHING = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)


@settings(max_examples=300)
@given(record=spoilt() | ANYTHING, format=st.sampled_from([None, *formats.FORMATS]))
def test_any_record_is_a_sample_or_a_record_error(folder, record, format):
    try:
        sample = formats.parse(record, Sounds([folder]), "x:1", format=format)
    except RecordError as error:
        assert str(error).startswith("x:1: ")
    else:
        assert any(turn.role == "assistant" for turn in sample.conversation.turns)
