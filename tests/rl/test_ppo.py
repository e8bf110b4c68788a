"""An update: the same however it is cut, deaf to what has no reward, and on a toy task it learns."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl import ppo
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import PolicyLoss
from stepaudio_jax.rl.rollout import Layout
from stepaudio_jax.training.step import TrainState
from tests.rl import runs

OPTIONS = ppo.PPO(samples=4, critic_minibatches=1, whiten=True)


@pytest.fixture(scope="module")
def played():
    return runs.play(runs.engine_of(runs.learners(critic=False)[0]), runs.prompts(), 4, (0, 0))[0]


def updated(played, options=OPTIONS, layout=runs.LAYOUT, mesh=None, objective=None):
    """Parameters of policy and critic after one update by plain gradients, and its metrics."""
    critic = options.baseline == "critic"
    policy, critic = runs.learners(mesh, rate=0.1, objective=objective, critic=critic, optimizer=optax.sgd)
    reference = TrainState(jax.tree.map(lambda x: 0.9 * x, policy.state.params), policy.state.frozen, None, None)
    reader, held = functools.partial(policy.read, state=reference), objective is not None or options.kl_reward
    metrics = ppo.update(played, options, layout, policy, critic, reader if held else None)
    states = [policy.state.params] + ([critic.state.params] if critic else [])
    return jax.tree.leaves(jax.device_get(states)), metrics


def close(a, b, atol=1e-5):
    for x, y in zip(a[0], b[0], strict=True):
        np.testing.assert_allclose(x, y, atol=atol)
    for name, value in a[1].items():
        if "largest" not in name:
            assert b[1][name] == pytest.approx(value, rel=2e-3, abs=2e-5), name


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_an_update_does_not_depend_on_how_it_is_cut(played, aggregation):
    options = dataclasses.replace(OPTIONS, aggregation=aggregation, importance=2.0, kl_loss=0.1)
    objective = PolicyLoss(Clip(), held=True, entropy_weight=0.01)
    whole = updated(played, options, objective=objective)
    close(whole, updated(played, options, Layout(2, 64, 1, 12 * 1280), objective=objective))


@pytest.mark.parametrize("axes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}])
def test_an_update_is_the_same_over_a_mesh(played, axes):
    mesh, shards = make_mesh(axes), axes["fsdp"] * axes.get("data", 1)
    layout = Layout(8, 64, 4 * axes.get("context", 1) * axes.get("tensor", 1), 20 * 1280, shards)
    close(updated(played), updated(played, layout=layout, mesh=mesh))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("baseline", ["critic", "rloo"])
def test_an_update_is_the_same_with_prompts_that_are_shared(played, axes, baseline):
    """Prompts of which replies share one copy; rows that hold several prompts, and break off one's replies."""
    options = dataclasses.replace(OPTIONS, baseline=baseline, importance=2.0, kl_loss=0.1)
    objective = PolicyLoss(Clip(), held=True, entropy_weight=0.01)
    alone = updated(played, options, objective=objective)
    mesh, shards = make_mesh(axes, None if axes else jax.devices()[:1]), axes.get("fsdp", 1)
    layout = Layout(4, 64, 4 * axes.get("tensor", 1), 20 * 1280, shards, share_prompts=True)
    close(alone, updated(played, options, layout, mesh, objective))


def test_prompts_are_not_shared_by_rows_that_are_split(played):
    layout = Layout(8, 64, 4, 20 * 1280, 2, share_prompts=True)
    with pytest.raises(ValueError, match="groups: expected rows that are whole"):
        updated(played, layout=layout, mesh=make_mesh({"data": 2, "context": 2}, jax.devices()[:4]))


@pytest.mark.parametrize("baseline", ["critic", "grpo", "rloo", "reinforce++"])
def test_a_sample_without_a_reward_changes_nothing(played, baseline):
    """A whole prompt's samples are masked: as if they were not there."""
    options = dataclasses.replace(OPTIONS, baseline=baseline)
    valid = np.arange(12) >= 4
    masked = dataclasses.replace(played, valid=valid, scores=np.where(valid, played.scores, 1e6).astype(np.float32))
    fewer = ppo.Rollout(played.samples[4:], played.examples[4:], played.scores[4:], np.ones(8, bool))
    close(updated(fewer, options), updated(masked, options))


def test_rollouts_without_any_reward_leave_the_policy_alone(played):
    nothing = dataclasses.replace(played, valid=np.zeros(12, bool))
    policy, critic = runs.learners()
    before = jax.device_get(policy.state.params)
    metrics = ppo.update(nothing, OPTIONS, runs.LAYOUT, policy, critic)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(policy.state.params))
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0


def test_the_first_step_is_on_policy(played):
    _, metrics = updated(played)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-4) and metrics["clip_fraction"] == 0
    assert metrics["kl_to_old"] == pytest.approx(0, abs=1e-6)
    assert 0 < metrics["entropy"] < np.log(520)


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam])
@pytest.mark.parametrize("baseline", ["critic", "grpo", "rloo"])
def test_where_there_is_nothing_to_learn_not_a_bit_changes(played, baseline, optimizer):
    """Rewards that are all 0, a critic that expects 0, no KL: whitening divides by a spread that is none."""
    policy, critic = runs.learners(rate=0.1, critic=baseline == "critic", optimizer=optimizer)
    before = [jax.device_get(learner.state.params) for learner in (policy, critic) if learner]
    nothing = dataclasses.replace(played, scores=np.zeros_like(played.scores))
    metrics = ppo.update(nothing, dataclasses.replace(OPTIONS, baseline=baseline), runs.LAYOUT, policy, critic)
    after = [jax.device_get(learner.state.params) for learner in (policy, critic) if learner]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert metrics["policy_loss"] == 0


def test_epochs_and_minibatches_move_away_from_the_old_policy(played):
    _, metrics = updated(played, dataclasses.replace(OPTIONS, epochs=3, minibatches=2), Layout(2, 64, 1, 12 * 1280))
    assert metrics["kl_to_old"] > 1e-5 and metrics["ratio"] != 1


def test_the_reward_reaches_the_critic_as_it_is(played):
    """With γ = λ = 1 its returns are the rewards: a critic that is trained on 0.8 alone comes to expect 0.8."""
    eight = dataclasses.replace(played, scores=np.full(12, 0.8, np.float32))
    policy, critic = runs.learners(rate=3e-3)
    for _ in range(60):
        metrics = ppo.update(eight, dataclasses.replace(OPTIONS, critic_minibatches=1), runs.LAYOUT, policy, critic)
    assert metrics["critic/loss"] < 1e-3


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "rloo", "reinforce++")]


@pytest.mark.parametrize("baseline", ["critic", *SLOW])
def test_it_learns_a_toy_task(baseline):
    """Half of all tokens are right at first; one seed here, five in benchmarks/rl_toy.py."""
    options = ppo.PPO(samples=8, baseline=baseline, critic_minibatches=2)
    found = runs.learn(options, updates=25, seed=0, rate=1e-2)
    assert np.mean(found[:3]) < 0.65 and np.mean(found[-3:]) > 0.8, found
