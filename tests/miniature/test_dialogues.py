"""Dialogues of the small world: replies that do everything are the best there is, and what is left out costs."""

import dataclasses
import json

import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.miniature import Care, Facts, by_preference, by_rubric, make_dialogue
from stepaudio_jax.miniature.judging import ANSWERS, LONGEST, facts_of, is_right, named, points

CARELESS = Care(0, 0, 0)


@pytest.mark.parametrize("manner", miniature.MANNERS)
def test_a_reply_that_does_everything_is_the_best_there_is(manner):
    for seed in range(40):
        made = make_dialogue(np.random.default_rng(seed), manner=manner)
        reply = made.conversation.turns[-1].text
        assert by_rubric(reply, made.facts) == 1 and by_preference(reply, made.facts) == pytest.approx(1), reply
        assert is_right(reply, made.facts) and made.rubric.count("\n") + 1 == len(points(reply, made.facts))
        assert [turn.role for turn in made.prompt.turns] == ["human", "assistant"] * (len(made.prompt.turns) // 2) + [
            "human"
        ]
        assert facts_of(json.loads(json.dumps(made.prompt.extra))) == made.facts


def test_one_that_does_nothing_but_answer_is_right_and_no_more():
    for seed in range(60):
        made = make_dialogue(np.random.default_rng(seed), care=CARELESS)
        reply = made.conversation.turns[-1].text
        assert reply == made.answer and by_preference(reply, made.facts) <= 0.6
        kept = by_rubric(reply, made.facts)
        assert kept <= 0.5 if made.manner == "correction" else kept == 0


def test_each_manner_sounds_as_it_should():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        mood = make_dialogue(rng, manner="mood")
        assert mood.scene is not None and mood.scene.events[0].kind == "vowel" == mood.answer
        assert ("happy" in mood.facts.mood) == (mood.scene.events[0].loudness == "loud")
        stopped = make_dialogue(rng, "timbre", manner="interruption")
        assert stopped.conversation.turns[-2].text.startswith("Stop. ") and stopped.facts.interrupted
        corrected = make_dialogue(rng, "direction", manner="correction")
        assert "No, wait. " in corrected.conversation.turns[-2].text and corrected.facts.corrected
        heard = corrected.conversation.turns[-2]
        assert len(heard.audio) == 1 and heard.extra["transcript"].startswith("[")


def test_the_same_seed_gives_the_same_dialogue():
    first, second = (make_dialogue(np.random.default_rng(5), care=Care(0.5, 0.5, 0.5)) for _ in range(2))
    assert first.facts == second.facts and first.conversation.turns[-1].text == second.conversation.turns[-1].text
    np.testing.assert_array_equal(first.conversation.audio[0].samples, second.conversation.audio[0].samples)


@pytest.mark.parametrize(
    ("kind", "reply", "answer"),
    [
        ("timbre", "The tone is bright.", "bright"),
        ("timbre", "The tone is pure, or bright.", None),
        ("timbre", "The tone is brightly lit.", None),
        ("order", "That sound was a noise burst!", "noise burst"),
        ("order", "A baritone.", None),
        ("loudness", "The first, I think.", "the first"),
        ("count", "I count 3 of that sound.", "3"),
        ("count", "30", None),
        ("tempo", "", None),
    ],
)
def test_the_answer_that_a_reply_names(kind, reply, answer):
    assert named(reply, Facts(kind=kind, answer=ANSWERS[kind][0])) == answer


def test_every_point_is_of_the_rubric_alone():
    facts = Facts("timbre", "pure", name="Anna", ending="Good night", opening="My friend", interrupted=True)
    whole = "My friend. Sure, I stop. Of course, Anna. The tone is hollow. Good night."
    assert by_rubric(whole, facts) == 1  # a wrong answer is no point of it
    assert by_rubric(whole.replace("Anna", "Ben"), facts) == 0.75
    assert by_rubric(whole.replace(" Good night.", ""), facts) == 0.75
    assert by_rubric("Well, " + whole, facts) == 0.75
    assert by_rubric(whole.replace("Sure, I stop. ", ""), facts) == 0.75
    assert by_preference(whole, facts) == pytest.approx(0.6) and by_preference("pure", facts) == 0.4


def test_who_babbles_has_nothing():
    facts = Facts("timbre", "pure", name="Anna")
    assert by_rubric("Anna " * 4 + "pure", facts) == 0 == by_preference("Anna " * 4 + "pure", facts)
    assert by_preference(" ".join(f"w{i}" for i in range(LONGEST)) + " pure", facts) == 0


def test_what_cannot_be_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind of question"):
        make_dialogue(rng, "weather")
    with pytest.raises(ValueError, match="kind of question"):
        make_dialogue(rng, manner="shouting")
    with pytest.raises(ValueError, match='expected "order" for a mood'):
        make_dialogue(rng, "timbre", manner="mood")
    with pytest.raises(ValueError, match="facts: expected a column"):
        facts_of({"rubric": "x"})
    assert dataclasses.asdict(Facts()) == dataclasses.asdict(facts_of({"facts": {}}))
