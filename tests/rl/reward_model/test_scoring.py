"""What can be verified and what is preferred, in one rollout."""

import pytest

from stepaudio_jax.judges import Counters, Reply
from stepaudio_jax.rl.prompts import with_rubric
from stepaudio_jax.rl.reward_model import RewardModel
from stepaudio_jax.rl.reward_model.scoring import PREFERENCE, MixedScore
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.text import Conversation, human

ASKED = Conversation((human("Name a fruit."),))


class Kind:
    """Prefers replies that say please, and cannot make up its mind about bananas; remembers what it was asked."""

    name = "kind"

    def __init__(self):
        self.counters, self.asked = Counters(), []

    def __call__(self, questions):
        self.asked += [question.conversation.turns[-1].text for question in questions]
        return [self._one(text) for text in self.asked[-len(questions) :]]

    def _one(self, text):
        first, second = ("please" in text.split(f"<reply {n}>\n")[1].split("\n</reply")[0] for n in (1, 2))
        if "banana" in text:
            return Reply("Hm.")
        return Reply(f"Verdict: {'equal' if first == second else 'better' if first else 'worse'}")


def sampled(answer, complete=True):
    return Sampled(0, 0, (1,), (0.0,), "hm", answer, complete, not complete)


def test_each_reward_goes_where_it_is_known():
    judge = Kind()
    preferred = Prompt(ASKED, "A pear.", "talk", PREFERENCE, {"rubric": "Be kind."})
    verified = Prompt(ASKED, "4", "sums", "exact")
    replies = [
        sampled("An apple, please."),
        sampled("4"),
        sampled("banana"),
        sampled("", False),
        sampled("5"),
        sampled("No."),
    ]
    prompts = [preferred, verified, preferred, preferred, verified, preferred]
    with RewardRunner() as runner:
        values, valid, about = MixedScore(runner, RewardModel(judge))(prompts, replies)
    assert values.tolist() == [0.5, 1, 0, -1, 0, 0] and valid.tolist() == [True, True, False, True, True, True]
    assert about == {"judge/read": 0.5, "judge/unreadable": 0.25, "judge/unfinished": 0.25}
    assert len(judge.asked) == 6 and all("Be kind." in text for text in judge.asked)


def test_a_prompt_without_a_reference_is_named():
    with (
        RewardRunner() as runner,
        pytest.raises(ValueError, match="talk: expected a reference to compare with, found N"),
    ):
        MixedScore(runner, RewardModel(Kind()))([Prompt(ASKED, None, "talk", PREFERENCE)], [sampled("x")])


def test_a_rubric_that_is_none_is_masked_and_counted():
    bad, good = (Prompt(ASKED, "A pear.", "talk", PREFERENCE, {"rubric": rubric}) for rubric in ([3], "Be kind."))
    replies = [sampled("An apple, please."), sampled("An apple, please.")]
    with RewardRunner() as runner:
        values, valid, about = MixedScore(runner, RewardModel(Kind()))([bad, good], replies)
    assert values.tolist() == [0, 0.5] and valid.tolist() == [False, True]
    assert about == {"judge/not shown": 0.5, "judge/read": 0.5, "judge/unfinished": 0}
    assert with_rubric(bad) is bad and with_rubric(good).history is ASKED
