"""What a judge is taught by: labelled comparisons in both orders, and the reward of its verdicts."""

import json

import ml_collections
import numpy as np
import pytest

from stepaudio_jax.cli import main
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.rl.prompts import StoredSource
from stepaudio_jax.rl.reward_model import LEVELS, read_level
from stepaudio_jax.rl.reward_model.labelled import read_labelled
from stepaudio_jax.rl.reward_model.rules import ByRule, of_the_miniature
from stepaudio_jax.rl.reward_model.small_world import make_labelled
from stepaudio_jax.rl.reward_model.teaching import exchanged, lessons
from stepaudio_jax.rl.rewards import Sample, find

ASKED = [{"role": "user", "content": "Name a fruit."}]
RECORDS = [
    {"messages": ASKED, "reply": "A pear.", "reference": "No.", "label": "much better", "rubric": ["Is kind"],
     "critique": "Reply 1 names one; reply 2, unlike reply 1, does not."},
    {"messages": ASKED, "reply": "A pear.", "reference": "A plum.", "label": 0},
    {"messages": ASKED, "reply": "No.", "reference": "A plum.", "label": -0.5},
    {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "A pear."}],
     "rejected": [{"role": "assistant", "content": "No."}]},
    {"context": ASKED, "response1": "A pear.", "response2": "No.", "overall_preference": -3},
    {"context": ASKED, "response1": "A pear.", "response2": "A plum.", "overall_preference": 1},
    {"messages": ASKED, "reply": "A pear."},
    {"messages": ASKED, "reply": "A pear.", "reference": "No.", "label": 1, "rubric": 3},
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "labelled.jsonl"
    made.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return made


def test_levels_by_each_format(path):
    found, refused = read_labelled([path], Sounds([]))
    assert [each.level for each in found] == ["much better", "equal", "worse", "better", "much better", "worse"]
    assert len(refused) == 2 and "rubric: expected" in str(refused[1])


def test_both_orders_are_taught(path, tmp_path, capsys):
    out = tmp_path / "lessons"
    assert main(["rl", "judge-data", str(path), "--out", str(out)]) == 0
    assert "12 dialogues of 6 comparisons, 2 records left out" in capsys.readouterr().out
    data = StoredDataset(str(out))
    taught = [data[i].conversation for i in range(len(data))]
    assert len(taught) == 12
    said = [each.turns[-1].text for each in taught]
    assert said[0] == "Reply 1 names one; reply 2, unlike reply 1, does not.\nVerdict: much better"
    assert said[1] == "Reply 2 names one; reply 1, unlike reply 2, does not.\nVerdict: much worse"
    for first, second in zip(taught[::2], taught[1::2], strict=True):
        levels = [read_level(each.turns[-1].text) for each in (first, second)]
        assert levels[0] and levels[1] == exchanged(levels[0]) and first.extra["level"] == levels[0]
    assert "Is kind" in taught[0].turns[1].text
    options = {"path": str(out), "weight": 1, "reward": "verdict", "accuracy": "", "truth": "level"}
    source = StoredSource("lessons", ml_collections.ConfigDict(options))
    assert source.prompt(1).truth == "much worse" and source.prompt(1).conversation.turns[-1].role == "human"
    assert main(["rl", "judge-data", str(path), "--out", str(out)]) != 0
    assert "expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("Hm.\nVerdict: better", "much better", True),
        ("Verdict: better", "worse", False),
        ("Verdict: equal", "equal", True),
        ("Verdict: equal", "better", False),
        ("better", "better", False),
        ("Verdict: better\nOr not.", "better", False),
    ],
)
def test_the_reward_of_a_verdict(said, truth, right):
    sample = Sample("", said, True, False, truth, {})
    assert find("verdict").function(sample) == right
    assert all(find("verdict").function(Sample("", f"Verdict: {level}", True, False, level, {})) for level in LEVELS)


def test_a_truth_that_is_no_level():
    with pytest.raises(ValueError, match="truth: expected one of much worse"):
        find("verdict").function(Sample("", "Verdict: better", True, False, "good", {}))


def test_the_small_world_labels_its_own():
    """Critique and verdict say the same; labels of both signs, and of none; the rule finds what they say."""
    made = [make_labelled(np.random.default_rng(i), kinds=("timbre", "order"), max_events=1) for i in range(80)]
    judged = ByRule(of_the_miniature)([each.comparison for each in made])
    assert [each.label for each in made] == [each.reward for each in judged]
    assert {np.sign(each.label) for each in made} == {-1, 0, 1}
    assert {bool(each.comparison.rubric) for each in made} == {True, False}
    for each in made:
        first, second = each.critique.split("\n")
        for lesson in lessons(each):
            said = lesson.conversation.turns[-1].text.split("\n")
            assert [line[:7] for line in said[:2]] == ["Reply 1", "Reply 2"] and len(said) == 3
        assert said[0][7:] == second[7:] and said[1][7:] == first[7:]
        if "nothing" in first and "nothing" not in second:
            assert each.label > 0 or (each.label == 0 and not each.comparison.rubric)
        assert [read_level(lesson.conversation.turns[-1].text) for lesson in lessons(each)] == [
            each.level, exchanged(each.level)
        ]  # fmt: skip
