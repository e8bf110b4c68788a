"""What a config says of reinforcement reaches what it is about: every field of `rl`."""

import pytest

from stepaudio_jax.rl import stage
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import CriticLoss, PolicyLoss
from stepaudio_jax.rl.ppo import PPO
from stepaudio_jax.training import read_config
from tests.rl import runs

UNUSUAL = ("rl.samples=3", "rl.baseline=grpo", "rl.scale=False", "rl.gamma=0.9", "rl.lam=0.8", "rl.whiten=False",
           "rl.aggregation=sequence", "rl.epochs=2", "rl.minibatches=4", "rl.critic_minibatches=5",
           "rl.importance=1.5", "rl.kl.weight=0.3", "rl.kl.reward=0.1", "rl.kl.estimator=k2", "rl.temperature=0.7",
           "rl.clip.low=0.1", "rl.clip.high=0.3", "rl.clip.dual=3.0", "rl.value_clip=0.4", "rl.entropy_weight=0.05",
           "rl.top_p=0.9", "rl.top_k=40", "rl.max_new_tokens=77", "rl.engine.max_rows=9", "rl.engine.pages=70",
           "rl.engine.burst=3", "rl.rows=16", "rl.row_tokens=256", "rl.sound_rows=2", "rl.sound_units=10",
           "rl.share_prompts=True")  # fmt: skip


@pytest.fixture(scope="module")
def unusual():
    return read_config("configs/rlvr_tiny.py", [f"--config.{each}" for each in UNUSUAL])


def test_every_option_of_an_update_is_the_configs(unusual):
    assert stage.ppo_of(unusual) == PPO(
        samples=3, baseline="grpo", scale=False, gamma=0.9, lam=0.8, whiten=False, aggregation="sequence", epochs=2,
        minibatches=4, critic_minibatches=5, importance=1.5, kl_loss=0.3, kl_reward=0.1,
    )  # fmt: skip


def test_both_objectives_are_the_configs(unusual, monkeypatch):
    temperatures = []
    monkeypatch.setattr(stage, "PolicyReader", lambda temperature, chunks: temperatures.append(temperature))
    policy = stage.policy_of(unusual, runs.one_device())
    expected = PolicyLoss(Clip(0.1, 0.3, 3.0), held=True, kl="k2", entropy_weight=0.05, temperature=0.7)
    assert policy.options.objective == expected and temperatures == [0.7]
    critic = stage.critic_of(unusual, runs.one_device())
    assert critic.options.objective == CriticLoss(0.4)
    trained, frozen = critic.abstract_state().params, critic.abstract_state().frozen
    assert set(trained) == {"decoder", "value_head"} and set(frozen) == {"encoder", "adaptor"}


def test_without_a_weight_there_is_no_kl_in_the_loss(unusual):
    plain = read_config("configs/rlvr_tiny.py", ["--config.rl.kl.reward=0.1"])
    objective = stage.policy_of(plain, runs.one_device()).options.objective
    assert objective == PolicyLoss(Clip(0.2, 0.2)) and not objective.held
    assert stage.ppo_of(plain).whiten and stage.ppo_of(plain).baseline == "critic"


def test_the_engine_and_its_sampling_are_the_configs(unusual):
    sampling = stage.sampling_of(unusual)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.9, 40, 77)
    options = stage.engine_options(unusual)
    assert (options.max_rows, options.max_length, options.pages, options.burst) == (9, 256, 70, 3)
    layout = stage.layout_of(unusual, runs.one_device())
    assert (layout.rows, layout.length, layout.sound_rows, layout.sound_samples, layout.share_prompts) == (
        16, 256, 2, 12_800, True,
    )  # fmt: skip
