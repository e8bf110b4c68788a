"""Records that users bring from elsewhere: read as the tools that wrote them mean it, or refused with the reason."""

import json
from collections.abc import Mapping

import numpy as np
import pytest

from stepaudio_jax import cli
from stepaudio_jax.data import formats
from stepaudio_jax.data.reading import read
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.sounds import MAX_CLIPS, MAX_RECORD_SECONDS, RecordSounds, Sounds
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human, system
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


def of_turns(*turns: Turn, **fields) -> Conversation:
    return Conversation(turns, **fields)


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


def test_a_clip_in_either_column(folder):
    for audios in ({"audios": [], "audio": CLIP}, {"audios": [CLIP], "audio": None}):
        found = parse({"messages": [Q, A], **audios}, folder).conversation
        assert same(found, of_turns(human(SOUND, "Q"), assistant("A")))


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


def test_conversations_with_role_and_content(folder):
    found = parse({"conversations": [{**Q, "content": "<audio>Q"}, A], "audios": [CLIP]}, folder).conversation
    assert same(found, of_turns(human(SOUND, "Q"), assistant("A")))


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


def test_every_kind_goes_the_whole_way(folder, tmp_path, capsys):
    """Checked and built as their users would, from the files that they have: what is stored is what was read."""
    data = (folder / CLIP).read_bytes()
    parts = [{"type": "input_audio", "input_audio": {"data": records.in_base64(folder / CLIP), "format": "wav"}}]
    asked = {**Q, "content": "<audio>Q"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "</tool_call>"}'}}
    made = {
        "openai.jsonl": [
            {"messages": [{**Q, "content": [*parts, {"type": "text", "text": "Q"}]}, {**A, "reasoning": "t"}]},
            {"messages": [Q, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "9"}, A]},
        ],
        "swift.jsonl": [
            {"messages": [asked, A], "audios": [CLIP]},
            {"query": "Q", "response": "A", "audios": [CLIP]},
        ],
        "sharegpt.json": [
            {"conversations": [{"from": "human", "value": "<audio>Q"}, {"from": "gpt", "value": "A"}], "audios": [CLIP]}
        ],
        "hugging_face.parquet": [{"messages": [Q, A], "audio": {"bytes": data, "path": None}, "id": 7}],
        "trl.parquet": [{"prompt": [asked], "chosen": [A], "rejected": [B], "audio": {"bytes": data, "path": "a.wav"}}],
        "verl.jsonl": [{"prompt": [asked, A], "audios": [CLIP], "data_source": "x", "reward_model": {}}],
    }
    paths = []
    for name, rows in made.items():
        write = records.write_parquet if name.endswith("parquet") else records.write_lines
        paths.append(write(tmp_path / name, rows))
    options = ["--audio", str(folder), "--max-bad-share", "0"]
    assert cli.main(["data", "check", *map(str, paths), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["good"], report["counts"]["dialogues with sound"]) == (8, 7)
    assert report["unread"] == {"id": 1, "data_source": 1, "reward_model": 1, "message.tool_calls[].id": 1}
    built = ["data", "build", *map(str, paths), *options, "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main(built) == 0
    sounds = Sounds([folder])
    expected = [formats.parse(record, sounds, where) for where, record in read(paths)]
    stored = [record for _, record in read([tmp_path / "out"])]
    for found, sample in zip(stored, expected, strict=True):
        assert isinstance(found, Sample) and same(found.conversation, sample.conversation)
        assert found.where == sample.where and (found.rejected is None) == (sample.rejected is None)
