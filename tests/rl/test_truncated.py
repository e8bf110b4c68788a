"""A reply that was cut off has accuracy 0 whatever it says (RECIPE §3): by every reward, each guarding for itself."""

import dataclasses

import pytest

from stepaudio_jax.rl.rewards import Reward, Sample
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.rl.scoring import score
from stepaudio_jax.text import Conversation, human

RIGHT = Sample("So it is B.", "The answer is B.", True, False, "B", {"choices": ["dog", "cat"]})
WHOLE = {
    "choice": RIGHT,
    "exact": dataclasses.replace(RIGHT, answer="B"),
    "number": dataclasses.replace(RIGHT, answer="The answer is 12.", truth="12"),
    "maths": dataclasses.replace(RIGHT, answer=r"The answer is \boxed{12}.", truth="12"),
}


def values(runner, sample, reward):
    cut_off = dataclasses.replace(sample, truncated=True)
    scored = runner.score([sample, cut_off], reward)
    assert [each.error for each in scored] == [None, None]
    return [each.value for each in scored]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_right_is_worth_nothing_where_it_was_cut_off(runner, name):
    assert values(runner, WHOLE[name], name) == [1.0, 0.0]


def test_the_reward_of_audio_guards_what_it_wraps(runner):
    """Its 0.2 for reasoning stays: the think block was closed."""
    reward = Reward("audio", {"accuracy": "tests.rl.functions:always_right"})
    assert values(runner, RIGHT, reward) == pytest.approx([1.0, 0.2])
    unclosed = dataclasses.replace(RIGHT, complete=False)
    assert values(runner, unclosed, reward) == pytest.approx([0.8, 0.0])


def test_a_run_tells_rewards_what_was_cut_off(runner):
    """From a reply to what its reward sees: closed or not, cut off or not."""
    prompt = Prompt(Conversation((human("A or B?"),)), "B", "toy", Reward("audio", {"accuracy": "exact"}))
    whole = Sampled(0, 0, (1,), (0.0,), "It barks.", "B", True, False)
    replies = [
        whole,
        dataclasses.replace(whole, truncated=True),
        dataclasses.replace(whole, complete=False),
        dataclasses.replace(whole, complete=False, truncated=True),
        dataclasses.replace(whole, answer="A"),
    ]
    values, valid, _ = score(runner, [prompt] * 5, replies)
    assert valid.all() and values.tolist() == pytest.approx([1.0, 0.2, 0.8, 0.0, 0.2])
