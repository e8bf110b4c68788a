"""Rubrics point by point, and comparing by a rule."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.judges import Counters, Reply
from stepaudio_jax.rl.reward_model import Comparison, RewardModel
from stepaudio_jax.rl.reward_model.compare import NO_ANSWER, NOT_SHOWN, READ, UNREADABLE
from stepaudio_jax.rl.reward_model.points import ByPoints
from stepaudio_jax.rl.reward_model.rules import ByRule, level, of_the_miniature
from stepaudio_jax.rl.reward_model.templates import rubric_of
from stepaudio_jax.rl.reward_model.verdicts import read_points
from stepaudio_jax.text import Audio, Conversation, human

HISTORY = Conversation((human("How do I make tea?"),))


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("It boils.\nVerdict: yes, no", (True, False)),
        ("Verdict: yes, no\n \n", (True, False)),
        ("Verdict: yes", None),
        ("Verdict: yes, no, yes", None),
        ("Verdict: yes, maybe", None),
        ("Verdict: yes,no", (True, False)),
        ("Verdict: Yes, no", (True, False)),
        ("Verdict: better", None),
        ("Verdict: yes, no.", (True, False)),
        ("", None),
    ],
)
def test_a_line_says_it_of_each_point(text, met):
    assert read_points(text, 2) == met


class Words:
    """Says of each point whether its last word is in the reply; asked to compare, that both are equal."""

    name = "words"

    def __init__(self):
        self.counters, self.asked = Counters(), []

    def __call__(self, questions):
        return [self._one(question.conversation.turns[-1].text) for question in questions]

    def _one(self, text):
        self.asked.append(text)
        if "<reply 1>" in text:
            return Reply("Verdict: equal")
        reply = text.split("<reply>\n")[1].split("\n</reply>")[0]
        if "down" in reply:
            return Reply(error="503")
        points = text.split("<rubric>\n")[1].split("\n</rubric>")[0].splitlines()
        return Reply("Verdict: " + ", ".join("yes" if point.split()[-1] in reply else "no" for point in points))


def test_points_have_weights_and_exchanging_the_two_turns_the_sign():
    judge = Words()
    model = ByPoints(judge, RewardModel(judge))
    rubric = rubric_of([{"text": "Names the\nwater", "weight": 3}, "Names the leaves", "Is kind"])
    one, other = "Boil water, put in leaves.", "Be kind <think>Names the water</think>."
    asked = [
        Comparison(HISTORY, one, other, *rubric),
        Comparison(HISTORY, other, one, *rubric),
        Comparison(HISTORY, one, other),
        Comparison(HISTORY, "down", other, *rubric),
        Comparison(HISTORY, one, other, "Names the water\n\nNames the leaves"),
    ]
    found = model(asked)
    assert [each.reward for each in found] == [pytest.approx(0.6), pytest.approx(-0.6), 0, None, 1]
    assert [each.outcome for each in found] == [READ, READ, READ, NO_ANSWER, READ]
    assert all("1. Names the water\n2. Names the leaves" in text for text in judge.asked if "<reply>" in text)
    assert model.outcomes == {READ: 3, NO_ANSWER: 1}


def test_a_judge_that_writes_nonsense_and_sound_that_it_cannot_hear():
    class Nonsense(Words):
        def _one(self, text):
            return Reply("Yes.")

    model = ByPoints(Nonsense(), RewardModel(Nonsense()))
    deaf = Conversation((human(Audio(np.zeros(1600, np.float32)), "What?"),))
    asked = [(HISTORY, "Is kind"), (deaf, "Is kind"), (deaf, "")]
    found = model([Comparison(history, "a", "b", rubric) for history, rubric in asked])
    assert [each.outcome for each in found] == [UNREADABLE, NOT_SHOWN, NOT_SHOWN]
    assert [each.reward for each in found] == [None] * 3


WEIGHTLESS = ({"text": "x", "weight": weight} for weight in (0, -1.0, float("nan"), float("inf"), True, "1"))


@pytest.mark.parametrize("column", [3, [3], [{"weight": 1}], [{"text": " "}], *([each] for each in WEIGHTLESS)])
def test_rubrics_that_are_none(column):
    with pytest.raises(ValueError, match="rubric: expected"):
        rubric_of(column)


def test_levels_of_a_difference():
    differences = (-1, -0.35, -0.34, -0.1, -0.09, 0, 0.09, 0.1, 0.34, 0.35, 1)
    names = ("much worse", "worse", "equal", "better", "much better")
    assert [names.index(level(each)) for each in differences] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_the_miniature_is_judged_by_its_rule():
    model = ByRule(of_the_miniature)
    for seed in range(30):
        made = miniature.make_dialogue(np.random.default_rng(seed))
        best = made.conversation.turns[-1].text
        for rubric in (made.rubric, ""):
            forth, back, same, thought = model(
                [
                    Comparison(made.prompt, best, "no idea", rubric),
                    Comparison(made.prompt, "no idea", best, rubric),
                    Comparison(made.prompt, best, best, rubric),
                    Comparison(made.prompt, f"<think>{best}</think>no", best, rubric),
                ]
            )
            assert (forth.reward, back.reward, same.reward, thought.reward) == (1, -1, 0, -1)
            assert forth.levels == ("much better", "much worse") and forth.outcome == READ
    assert model([Comparison(HISTORY, "a", "b")])[0] == dataclasses.replace(
        forth, reward=None, levels=(None, None), outcome=NOT_SHOWN
    )
