"""Nothing that a record holds is dropped without a word: what is not read is counted by name, and shown."""

import json

import pytest

from stepaudio_jax import cli
from stepaudio_jax.data import findings
from stepaudio_jax.data.check import check
from tests import small
from tests.data import records
from tests.data.records import CLIP

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
B = {**A, "content": "B"}

UNREAD = {  # what it holds beside a dialogue: (record, names of that)
    "columns": ({"messages": [Q, A], "id": 7, "image": "a.png", "none": None}, {"id", "image"}),
    "fields of messages": (
        {"messages": [{**Q, "name": "Ann", "reasoning": "x"}, {**A, "refusal": "no", "thinking": "t"}]},
        {"message.name", "message.reasoning", "message.refusal"},
    ),
    "fields of turns": (
        {"conversations": [{"from": "human", "value": "Q", "lang": "de"}, {"from": "gpt", "value": "A"}]},
        {"message.lang"},
    ),
    "fields of parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Q", "cache_control": {}, "audio": CLIP},
                        {"type": "audio", "audio": {"path": CLIP, "start": 1.0, "sampling_rate": 8}, "url": "a.wav"},
                        {"type": "audio_url", "audio_url": {"url": CLIP, "detail": "low"}, "min_pixels": 1},
                    ],
                },
                A,
            ]
        },
        {
            "message.content[].cache_control",
            "message.content[].audio",
            "message.content[].audio.start",
            "message.content[].audio.sampling_rate",
            "message.content[].url",
            "message.content[].audio_url.detail",
            "message.content[].min_pixels",
        },
    ),
    "fields of clips": (
        {"messages": [Q, A], "audios": [{"path": CLIP, "offset": 1.0, "text": "tone", "bytes": None}]},
        {"audios[].offset", "audios[].text"},
    ),
    "fields of calls": (
        {
            "messages": [
                Q,
                {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "strict": True}}]},
                {"role": "tool", "tool_call_id": "1", "content": "9"},
                A,
            ]
        },
        {"message.tool_calls[].id", "message.tool_calls[].function.strict", "message.tool_call_id"},
    ),
    "a system prompt beside another": (
        {"messages": [{"role": "system", "content": "S"}, Q, A], "system": "T"},
        {"system"},
    ),
    "fields of an empty system message": (
        {"messages": [{"role": "system", "content": "", "name": "Ann"}, Q, A]},
        {"message.system.name"},
    ),
    "clips beside others": ({"messages": [Q, A], "audios": [CLIP], "audio": "other.flac"}, {"audio"}),
    "clips of no worse dialogue": ({"messages": [Q, A], "rejected_audios": [CLIP]}, {"rejected_audios"}),
    "a worse reply beside a worse dialogue": (
        {"messages": [Q, A], "rejected_messages": [Q, B], "rejected_response": "C"},
        {"rejected_response"},
    ),
    "a worse reply without a better one": ({"messages": [Q, A], "rejected": [B]}, {"rejected"}),
    "fields of the worse reply": (
        {"prompt": [Q], "chosen": [A], "rejected": [{**B, "score": 1}], "margin": 2},
        {"message.score", "margin"},
    ),
    "a dialogue beside a pair": ({"chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A]}, {"messages"}),
    "a dialogue beside turns": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "messages": [Q, A]},
        {"messages"},
    ),
    "a prompt that is not in the dialogue": ({"prompt": "P", "chosen": [Q, A], "rejected": [Q, B]}, {"prompt"}),
    "a completion beside a pair": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "completion": "C"},
        {"completion"},
    ),
    "reasoning beside a dialogue": ({"query": "Q", "response": "A", "reasoning": "t"}, {"reasoning"}),
    "what a reward reads": (
        {"prompt": [Q, A], "data_source": "x", "reward_model": {}, "extra_info": {}},
        {"data_source", "reward_model", "extra_info"},
    ),
    "nothing": ({"messages": [Q, {**A, "loss": True, "reasoning": "t"}], "audios": [CLIP], "tools": "[]"}, set()),
    "nothing, where null fills a table": (
        {"messages": [{**Q, "tool_calls": None, "thinking": None}, A], "audios": None, "chosen": None, "x": None},
        set(),
    ),
}


@pytest.fixture
def folder(tmp_path):
    records.write_sounds(tmp_path)
    return tmp_path


def counted(folder, record) -> dict[str, int]:
    path = records.write_lines(folder / "set.jsonl", [record, {"messages": [Q, A]}, record])
    found = check([path], small.tokenizer())
    assert found.good == 3
    return dict(found.unread)


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_counted_by_name(folder, name):
    record, names = UNREAD[name]
    assert counted(folder, record) == dict.fromkeys(names, 2)


def test_it_is_shown_and_stays_with_a_stored_data_set(folder, capsys):
    lines = [{"messages": [{**Q, "name": "Ann"}, A], "id": i, "\x1b[2J": 1} for i in range(3)]
    path = records.write_lines(folder / "set.jsonl", lines)
    expected = {"id": 3, "\ufffd[2J": 3, "message.name": 3}

    def run(*argv) -> str:
        assert cli.main(["data", *map(str, argv)]) == 0
        return capsys.readouterr().out

    assert json.loads(run("check", path, "--json", "--report", folder / "page.html"))["unread"] == expected
    assert "<td>3<td>message.name" in (folder / "page.html").read_text()
    shown = run("check", path)
    assert "kept, but not read" in shown and "message.name" in shown and "\x1b" not in shown
    run("build", path, "--out", folder / "stored", "--workers", 1)
    assert json.loads(run("check", folder / "stored", "--json"))["unread"] == expected


def test_names_have_a_bound_and_are_counted_beyond_it(folder, monkeypatch, capsys):
    monkeypatch.setattr(findings, "NAMES", 60)
    path = records.write_lines(folder / "set.jsonl", [{"messages": [Q, A], f"key{i:02}": i} for i in range(70)])
    found = check([path], small.tokenizer())
    assert len(found.unread) == 61 and found.unread[findings.FURTHER] == 10
    assert cli.main(["data", "check", str(path)]) == 0
    assert "11 more names" in capsys.readouterr().out


def test_audio_as_a_word_is_counted(folder):
    words = {"role": "user", "content": "<audio>"}
    path = records.write_lines(
        folder / "set.jsonl", [{"messages": [words, A]}, {"messages": [words, A], "audio": CLIP}]
    )
    assert check([path], small.tokenizer()).counts["dialogues with <audio> as a word"] == 1
