"""What counts as reasoning that listens: the rules for words, the judge that knows the scene, and captions that lie."""

import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.rl import grounding, self_cognition
from stepaudio_jax.rl.grounding import Rules, SmallWorldJudge, judge_of
from stepaudio_jax.rl.rollout import Prompt, Sampled

RULES = Rules()


@pytest.mark.parametrize(
    ("think", "evidence", "surrogate"),
    [
        ("I hear:\n1 loud tone\nSo 1.", True, False),
        ("The pitch is rising, and her voice trembles.", True, False),
        ("The speaker pauses before she answers.", True, False),
        ("The caption says:\n1 loud tone\nSo 1.", True, True),
        ("According to the transcript he is angry.", False, True),
        ("From the lyrics it is a sad song.", False, True),
        ("The text of the question mentions a dog.", False, True),
        ("The description clearly states: two.", False, True),
        ("It must be 2, as most questions have that answer.", False, False),
        ("The Nile is the longest river.", False, False),
        ("A caption of it would be long; I hear rain.", True, False),
    ],
)
def test_rules(think, evidence, surrogate):
    assert RULES.names_evidence(think) is evidence
    assert RULES.is_surrogate(think) is surrogate


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("I cannot hear audio.", True),
        ("As a text-based model I have no ears.", True),
        ("I'm just a language model.", True),
        ("I am unable to listen to the clip", True),
        ("No audio was provided.", True),
        ("I can hear a tone.", False),
        ("I hear nothing, so I guess.", False),
        ("She says she cannot hear him.", False),
        ("The text model of the phone is old.", False),
    ],
)
def test_denials(text, denied):
    assert self_cognition.denies(text) is denied


def asked(kind, seed=0):
    question = miniature.make_question(np.random.default_rng(seed), kind, max_events=3, sound=False)
    return question, Prompt(question.prompt, question.answer, kind, "exact", {"scene": question.scene})


def reply(think, answer):
    return Sampled(0, 0, (), (), think, answer, True, False)


@pytest.mark.parametrize("kind", miniature.KINDS)
def test_the_judge_of_the_small_world(kind):
    for seed in range(20):
        question, prompt = asked(kind, seed)
        turn = question.conversation.turns[-1]
        wrong = {"the first": "the second", "faster": "slower", "tone": "vowel"}.get(turn.text, "tone")
        lines = turn.think.splitlines()
        nothing = "\n".join([lines[0], "1 soft organ", *lines[1 + len(question.scene.events) :]])
        cases = {"true": (turn.think, turn.text), "wrong": (turn.think, wrong), "nothing": (nothing, turn.text)}
        verdicts = {name: SmallWorldJudge()([prompt], [reply(*case)])[0] for name, case in cases.items()}
        assert verdicts["true"] == grounding.Verdict(True, True)
        assert verdicts["wrong"].grounded and not verdicts["wrong"].coherent
        assert not verdicts["nothing"].grounded
        surrogate = turn.think.replace("I hear:", "The caption says:")
        assert not SmallWorldJudge()([prompt], [reply(surrogate, turn.text)])[0].grounded


def test_judges_by_name():
    assert judge_of("none")([None], [None])[0] == grounding.Verdict(True, True)
    assert judge_of("stepaudio_jax.rl.grounding:no_judge") is grounding.no_judge
    for name in ("other", "stepaudio_jax.rl.grounding:nobody", "no_such_module:x"):
        with pytest.raises(ValueError, match="judge: "):
            judge_of(name)


@pytest.mark.parametrize("kind", [kind for kind in miniature.KINDS if kind != "dialogue"])
def test_captions_that_contradict_lead_elsewhere(kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        made = miniature.make_captioned(rng, kind, contradicts=True, listens=False, max_events=3)
        asked, told = made.conversation.turns
        assert made.contradicts and made.misled != made.answer
        assert told.text == made.misled and told.think.startswith("The caption says:")
        assert miniature.follows(told.think, made.misled) and not miniature.follows(told.think, made.answer)
        words = asked.text.splitlines()
        assert words[0].startswith("Caption: ") and len(words) == 2 and asked.audio
        heard = miniature.make_captioned(np.random.default_rng(seed), kind, contradicts=True, max_events=3)
        assert heard.conversation.turns[0].text == asked.text and heard.conversation.turns[-1].text == made.answer
        true = miniature.make_captioned(rng, kind, contradicts=False, listens=False, max_events=3)
        assert true.misled == true.answer == true.conversation.turns[-1].text
        scene = ", ".join(event.description for event in true.scene.events)
        assert true.conversation.turns[0].text.startswith(f"Caption: {scene}.\n")


def test_a_dialogue_has_no_caption():
    with pytest.raises(ValueError, match="questions of one turn"):
        miniature.make_captioned(np.random.default_rng(0), "dialogue", contradicts=False)
