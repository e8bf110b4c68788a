"""Labelled comparisons from their files, and the command that says how well a judge agrees with them."""

import json

import pytest

from stepaudio_jax.cli import main
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.judges import Counters, Recorded, Reply
from stepaudio_jax.rl.reward_model import RewardModel
from stepaudio_jax.rl.reward_model.labelled import read_labelled

ASKED = [{"role": "user", "content": "Name a fruit."}]
RECORDS = [
    {"messages": ASKED, "reply": "Apple, of course.", "reference": "No.", "label": "much better", "rubric": "be kind"},
    {"messages": ASKED, "reply": "No.", "reference": "Pear.", "label": -0.5},
    {"context": ASKED, "response1": "Fig, gladly.", "response2": "Car.", "overall_preference": -3},
    {"context": "Name a fruit.", "response1": "Car.", "response2": "Fig, with honey.", "overall_preference": 2},
    {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "Plum, a blue one."}],
     "rejected": [{"role": "assistant", "content": "Eh."}]},
    {"messages": ASKED, "reply": "a", "reference": "b", "label": "great"},
    {"messages": [*ASKED, {"role": "assistant", "content": "Plum."}]},
    {"context": ASKED, "response1": "a", "response2": None, "overall_preference": 1},
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "not JSON\n")
    return file


class Longer:
    """Prefers the longer reply."""

    name = "longer"

    def __init__(self):
        self.counters = Counters()

    def __call__(self, questions):
        self.counters.asked += len(questions)
        replies = []
        for question in questions:
            text = question.conversation.turns[-1].text
            first, second = (len(text.split(f"<reply {n}>\n")[1].split("\n</reply")[0]) for n in (1, 2))
            level = "better" if first > second else "worse" if first < second else "equal"
            replies.append(Reply(f"By length.\nVerdict: {level}"))
        return replies


def test_what_is_read_and_what_is_not(path):
    found, refused = read_labelled([path], Sounds([]))
    assert [each.label for each in found] == [1.0, -0.5, 3.0, -2.0, 1.0]
    assert found[0].comparison.rubric == "be kind" and found[1].comparison.rubric == ""
    assert [each.comparison.reply for each in found[2:]] == ["Fig, gladly.", "Car.", "Plum, a blue one."]
    assert found[4].comparison.reference == "Eh." and found[3].comparison.history.turns[0].text == "Name a fruit."
    messages = " ".join(map(str, refused))
    assert len(refused) == 4 and "labelled.jsonl:6: label: expected a number or one of much worse" in messages
    assert "labelled.jsonl:7: expected a worse reply" in messages and "labelled.jsonl:9: not JSON" in messages
    assert "labelled.jsonl:8: expected two replies as text" in messages


def test_the_command_reads_a_record_back(path, tmp_path, capsys):
    found, _ = read_labelled([path], Sounds([]))
    replies = tmp_path / "replies.jsonl"
    RewardModel(Recorded(replies, Longer()))([each.comparison for each in found])
    out = tmp_path / "figures.json"
    assert main(["rl", "judge-eval", str(path), "--replay", str(replies), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "1.000" in shown and "left out" in shown
    figures = json.loads(out.read_text())
    assert figures["agreement"]["judged"] == 5 and figures["agreement"]["position_bias"] == 0
    assert [row["reward"] for row in figures["comparisons"]] == [0.5, -0.5, 0.5, -0.5, 0.5]


def test_the_command_names_what_is_wrong(path, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["rl", "judge-eval", str(empty), "--replay", str(path)]) != 0
    assert "expected labelled comparisons, found none of 0 records" in capsys.readouterr().err
    assert main(["rl", "judge-eval", str(path), "--replay", str(tmp_path / "none.jsonl")]) != 0
    assert "expected a file of a judge's replies, found none" in capsys.readouterr().err


def test_sound_that_nobody_can_judge_is_left_out_before_anything_is_asked(tmp_path, capsys):
    """A judge that reads, a clip without a transcript; and figures that are not numbers are null."""
    sound = {"messages": [{"role": "user", "content": "<audio>What?"}], "reply": "a", "reference": "b", "label": 0}
    sound["audios"] = [{"array": [0.0] * 16_000, "sampling_rate": 16_000}]
    file, replies, out = (tmp_path / name for name in ("labelled.jsonl", "replies.jsonl", "figures.json"))
    file.write_text(json.dumps(sound) + "\n" + json.dumps(RECORDS[0]) + "\n")
    replies.write_text("")
    assert main(["rl", "judge-eval", str(file), "--replay", str(replies), "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "labelled.jsonl:1: turn 1: expected a column transcript" in shown
    figures = json.loads(out.read_text(), parse_constant=pytest.fail)["agreement"]
    assert figures["judged"] == 0 and figures["without"] == 1 and figures["accuracy"] is None
