"""An update's numbers, worked out by hand: three tokens of a reply go the way that every rollout goes.

The learners here answer with given numbers and remember what they are to learn from, so that nothing is compiled, and a
sign, a place or an argument that is wrong anywhere between the reward and the loss shows.
"""

import dataclasses
import statistics

import numpy as np
import pytest

from stepaudio_jax.data import Example
from stepaudio_jax.rl import ppo
from stepaudio_jax.rl.rollout import Layout, Sampled
from stepaudio_jax.text import Rendered

LAYOUT = Layout(rows=1, length=12, sound_rows=0, sound_samples=1280)
PROMPT = (7, 8)

# Of the reply's three tokens, which stand in places 2, 3 and 4 and are predicted in places 1, 2 and 3:
TRAINER = (-1.0, -2.0, -0.5)
"""log π as the trainer computes it."""
SAMPLER = (-1.5, -2.0, -0.5 - float(np.log(4)))
"""log π as the engine did: importance weights e^0.5, 1 and 4."""
REFERENCE = (-1.2, -1.0, -0.5)
"""log π_ref: log π − log π_ref is 0.2, −1 and 0."""
VALUES = (0.5, 0.25, 1.0)
GARBAGE = 77.0
"""What is read in every other place: nothing may come of it."""


class Learner:
    """Stands in for a policy, a critic or a reference."""

    def __init__(self, **given):
        """Arrays [12] by name, of the one row there is."""
        self.given, self.steps = given, []

    def read(self, batches):
        return [{name: np.array([row], np.float32) for name, row in self.given.items()} for _ in batches]

    def step(self, batches):
        self.steps.append(batches)
        return {"loss": 0.0, "grad_norm": 0.0}


def row(*values, first=1):
    """A row with these values from a place on, and garbage elsewhere."""
    made = np.full(LAYOUT.length, GARBAGE, np.float32)
    made[first : first + len(values)] = values
    return made


def reply(sample, log_probs, prompt=0):
    tokens = tuple(range(20, 20 + len(log_probs)))
    sampled = Sampled(prompt, sample, tokens, tuple(log_probs), "Hm.", "Yes", True, False)
    ids = np.array([*PROMPT, *tokens], np.int32)
    return sampled, Example(Rendered(ids, np.arange(len(ids)) >= len(PROMPT), ()), ())


def learnt(replies, scores, options, policy, *, critic=None, reference=None, valid=None, layout=LAYOUT):
    """(what the policy's step is given, what the critic's is, the metrics), arrays [T] of the one row by name."""
    samples, examples = zip(*replies, strict=True)
    valid = np.ones(len(samples), bool) if valid is None else np.array(valid)
    rollout = ppo.Rollout(samples, examples, np.array(scores, np.float32), valid)
    metrics = ppo.update(rollout, options, layout, policy, critic, reference and reference.read)
    given = [
        {name: array[0] for name, array in learner.steps[0][0].extra.items()} if learner else {}
        for learner in (policy, critic)
    ]
    return *given, metrics


def policy_of(*log_probs):
    return Learner(log_probs=row(*log_probs), entropy=row(0.1, 0.2, 0.3))


ONE = ppo.PPO(samples=1, whiten=False, critic_minibatches=1)


def of_one(score=0.8, **options):
    """One reply of three tokens, by the critic."""
    critic = Learner(values=row(*VALUES))
    reference = Learner(log_probs=row(*REFERENCE))
    made = dataclasses.replace(ONE, **options)
    return learnt([reply(0, SAMPLER)], [score], made, policy_of(*TRAINER), critic=critic, reference=reference)


def at(array):
    """What stands in the places before the three tokens; the tokens' weights elsewhere are checked to be 0."""
    return array[1:4]


def test_with_one_reward_at_the_end_the_advantage_is_the_reward_less_the_value():
    policy, critic, metrics = of_one()
    np.testing.assert_allclose(at(policy["advantages"]), [0.3, 0.55, -0.2], atol=1e-6)
    np.testing.assert_allclose(at(critic["returns"]), [0.8, 0.8, 0.8], atol=1e-6)
    np.testing.assert_allclose(at(critic["old_values"]), VALUES)
    assert metrics["explained_variance"] != metrics["explained_variance"]  # returns that are all the same


@pytest.mark.parametrize("of_critic", [False, True])
def test_the_tokens_that_count_are_those_before_which_the_policy_chose(of_critic):
    weights = of_one()[of_critic]["weights"]
    np.testing.assert_allclose(weights, [0, 1 / 3, 1 / 3, 1 / 3, *[0] * 8], rtol=1e-6)


def test_a_penalty_for_leaving_the_reference_is_taken_off_each_tokens_reward():
    """r_t = −0.1 (log π − log π_ref) = −0.02, +0.1, 0 (+ 0.8): returns 0.88, 0.9, 0.8."""
    policy, critic, metrics = of_one(kl_reward=0.1)
    np.testing.assert_allclose(at(critic["returns"]), [0.88, 0.9, 0.8], atol=1e-6)
    np.testing.assert_allclose(at(policy["advantages"]), [0.38, 0.65, -0.2], atol=1e-6)
    k3 = [np.exp(-d) - 1 + d for d in (0.2, -1.0, 0.0)]
    assert metrics["kl_to_reference"] == pytest.approx(np.mean(k3), abs=1e-6)


def test_gamma_and_lambda_discount():
    """δ = −0.02 + 0.9 · 0.25 − 0.5, 0.1 + 0.9 · 1 − 0.25, 0.8 − 1; Â_3 = δ_3, Â_t = δ_t + 0.9 · 0.5 Â_{t+1}."""
    policy, critic, _ = of_one(kl_reward=0.1, gamma=0.9, lam=0.5)
    np.testing.assert_allclose(at(policy["advantages"]), [0.002, 0.66, -0.2], atol=1e-6)
    np.testing.assert_allclose(at(critic["returns"]), [0.502, 0.91, 0.8], atol=1e-6)


def test_advantages_are_whitened_over_the_tokens_that_count():
    found = at(of_one(whiten=True)[0]["advantages"])
    raw = [0.3, 0.55, -0.2]
    expected = [(x - statistics.mean(raw)) / statistics.stdev(raw) for x in raw]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert ppo.PPO(samples=1).whiten  # unless a config says otherwise


def test_the_ratio_begins_at_the_trainers_own_log_probabilities():
    policy, _, metrics = of_one()
    np.testing.assert_allclose(at(policy["old_log_probs"]), TRAINER)
    assert "importance" not in policy
    assert metrics["sampler/mean_difference"] == pytest.approx((0.5 + np.log(4)) / 3, abs=1e-6)
    assert metrics["entropy"] == pytest.approx(0.2)


def test_importance_weights_are_trainer_over_sampler_and_truncated():
    policy, _, _ = of_one(importance=2.0)
    np.testing.assert_allclose(at(policy["importance"]), [np.exp(0.5), 1.0, 2.0], rtol=1e-6)


def test_the_kl_of_the_loss_is_to_the_reference_with_its_weight():
    policy, critic, _ = of_one(kl_loss=0.3)
    np.testing.assert_allclose(at(policy["reference"]), REFERENCE)
    np.testing.assert_allclose(at(policy["kl_weight"]), [0.3] * 3)
    np.testing.assert_allclose(at(critic["returns"]), [0.8, 0.8, 0.8], atol=1e-6)  # and no part of the reward
    assert set(critic) == {"weights", "old_values", "returns"}


# Two replies to one prompt in one row: three tokens predicted in places 1 to 3, one in place 6.
PAIR = [reply(0, SAMPLER), reply(1, (-1.0,))]


def of_two(scores=(1.0, 0.0), baseline="grpo", **options):
    policy = policy_of(*TRAINER, GARBAGE, GARBAGE, -1.0)
    reference = Learner(log_probs=row(*REFERENCE, GARBAGE, GARBAGE, -4.0))
    made = ppo.PPO(samples=2, baseline=baseline, **options)
    return learnt(PAIR, scores, made, policy, reference=reference)[0]


def test_one_advantage_for_all_tokens_of_a_reply():
    found = of_two(baseline="rloo")
    np.testing.assert_allclose(found["advantages"], [0, 1, 1, 1, 0, 0, -1, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["weights"], [0, *[0.25] * 3, 0, 0, 0.25, *[0] * 5], rtol=1e-6)
    halves = of_two(baseline="rloo", aggregation="sequence")["weights"]
    np.testing.assert_allclose(halves, [0, *[1 / 6] * 3, 0, 0, 0.5, *[0] * 5], rtol=1e-6)


def test_a_group_is_divided_by_its_spread_if_it_is_asked_for():
    """Rewards 1 and 0: mean 0.5, standard deviation √0.5."""
    np.testing.assert_allclose(of_two()["advantages"][[1, 6]], [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)])
    np.testing.assert_allclose(of_two(scale=False)["advantages"][[1, 6]], [0.5, -0.5], atol=1e-6)


def test_a_group_pays_for_leaving_the_reference_too():
    """0.1 Σ (log π − log π_ref): −0.08 of the first reply, 0.3 of the second, so rewards 1.08 and −0.3."""
    found = of_two(baseline="rloo", kl_reward=0.1)["advantages"]
    np.testing.assert_allclose(found[[1, 3, 6]], [1.38, 1.38, -1.38], atol=1e-6)


def test_a_reply_without_a_reward_has_no_weight_and_no_part_in_whitening():
    critic = Learner(values=row(*VALUES, GARBAGE, GARBAGE, 50.0))
    policy, of_critic, _ = learnt(
        PAIR, [0.8, 0.0], dataclasses.replace(ONE, whiten=True), policy_of(*TRAINER), critic=critic, valid=[True, False]
    )
    alone, _, _ = of_one(whiten=True)
    np.testing.assert_allclose(at(policy["advantages"]), at(alone["advantages"]), atol=1e-6)
    for given in (policy, of_critic):
        np.testing.assert_allclose(given["weights"], [0, 1 / 3, 1 / 3, 1 / 3, *[0] * 8], rtol=1e-6)


def test_epochs_and_minibatches_are_steps():
    """Two batches of a row each: so many steps, whose batches are all there."""
    layout = dataclasses.replace(LAYOUT, length=6)
    policy, critic = Learner(log_probs=row(*TRAINER)[:6], entropy=row()[:6]), Learner(values=row(*VALUES)[:6])
    options = dataclasses.replace(ONE, epochs=3, minibatches=2, critic_minibatches=2)
    learnt(PAIR, [1, 0], options, policy, critic=critic, layout=layout)
    assert [len(step) for step in policy.steps] == [1] * 6 and [len(step) for step in critic.steps] == [1] * 2
    policy.steps, critic.steps = [], []
    learnt(PAIR, [1, 0], dataclasses.replace(ONE, epochs=2), policy, critic=critic, layout=layout)
    assert [len(step) for step in policy.steps] == [2, 2] and [len(step) for step in critic.steps] == [2]
    np.testing.assert_allclose(sum(batch.extra["weights"].sum() for batch in policy.steps[0]), 1, rtol=1e-6)
