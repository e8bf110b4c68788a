"""What a config's run is made of: how it learns, what it learns on, policy, critic, and the engine's size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inference import EngineOptions, SamplingParams
from stepaudio_jax.models import StepAudio, make_critic
from stepaudio_jax.parallel import MeshError, ShardingRules, make_mesh
from stepaudio_jax.rl import ppo
from stepaudio_jax.rl.learner import Learner, PolicyReader, read_critic
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import CriticLoss, PolicyLoss
from stepaudio_jax.rl.rollout import Layout
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.initial import new_model
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.step import StepOptions


def ppo_of(config: Config) -> ppo.PPO:
    """Raises ValueError: a field that cannot be used."""
    rl = config.rl
    same = {field.name for field in dataclasses.fields(ppo.PPO)} - {"kl_loss", "kl_reward"}
    if rl.kl.target is not None and not (rl.kl.target > 0 and (rl.kl.weight or rl.kl.reward)):
        raise ValueError(f"rl.kl.target: expected above 0, beside a weight or reward to adapt, found {rl.kl.target}")
    return ppo.PPO(**{name: rl[name] for name in same}, kl_loss=rl.kl.weight, kl_reward=rl.kl.reward)


def rules_of(config: Config) -> tuple[ShardingRules, ShardingRules]:
    """The policy's; and the critic's and the reference's, which may have the last devices to themselves
    (config.rl.critic_mesh).

    Raises:
      MeshError: sizes that do not multiply out. ValueError: the two cut a batch's rows or its sound into different
        numbers of shares; several processes.
    """
    own = {name: int(size) for name, size in config.rl.critic_mesh.items() if size}
    if not own:
        rules = ShardingRules(make_mesh(config.mesh))
        return rules, rules
    if jax.process_count() > 1:
        raise ValueError("rl.critic_mesh: expected one process, whose devices are divided, found several")
    devices, size = jax.devices(), math.prod(own.values())
    if not 0 < size < len(devices):
        raise MeshError(f"rl.critic_mesh: expected a part of the {len(devices)} devices, found {size}")
    first, last = (ShardingRules(make_mesh(axes, part)) for axes, part in
                   ((config.mesh, devices[:-size]), (own, devices[-size:])))  # fmt: skip
    shares = [[rules.size(rules.split(name)) for name in ("batch", "chunks")] for rules in (first, last)]
    if shares[0] != shares[1]:
        raise ValueError(
            f"rl.critic_mesh: expected rows and sound in {shares[0][0]} and {shares[0][1]} shares, as the policy's "
            f"mesh cuts them, found {shares[1][0]} and {shares[1][1]}"
        )
    return first, last


def layout_of(config: Config, rules: ShardingRules) -> Layout:
    rl = config.rl
    sizes = {"batch": ("rl.rows", rl.rows), "length": ("rl.row_tokens", rl.row_tokens)}
    rules.check(StepAudioConfig.preset(config.model), sizes)
    shards = rules.size(rules.split("batch"))
    if rl.share_prompts and rules.size(rules.split("length")) > 1:
        raise ValueError("rl.share_prompts: expected rows that are whole, found an axis context that splits them")
    if rl.sound_rows % (parts := rules.size(rules.split("chunks"))):
        raise ValueError(f"rl.sound_rows: expected a multiple of the {parts} shards of sound, found {rl.sound_rows}")
    return Layout(rl.rows, rl.row_tokens, rl.sound_rows, rl.sound_units * UNIT_SAMPLES, shards, rl.share_prompts)


def step_options(config: Config, objective: Any) -> StepOptions:
    return StepOptions(
        remat=config.remat,
        scan_layers=config.scan_layers,
        compute_dtype=jnp.dtype(config.compute_dtype),
        vocab_chunks=config.vocab_chunks,
        objective=objective,
    )


def policy_of(config: Config, rules: ShardingRules) -> Learner:
    """Of shapes; `begin` gives it weights."""
    rl = config.rl
    objective = PolicyLoss(Clip(**rl.clip), bool(rl.kl.weight), rl.kl.estimator, rl.entropy_weight, rl.temperature)
    steps = config.steps * rl.epochs * rl.minibatches
    return Learner(
        nnx.eval_shape(lambda: new_model(config)),
        make_optimizer(config.optim, steps),
        step_options(config, objective),
        PolicyReader(rl.temperature, config.vocab_chunks),
        trainable=config.trainable,
        rules=rules,
    )


def critic_of(config: Config, rules: ShardingRules) -> Learner:
    """The policy with a value head in place of its language head (RECIPE §3), of shapes."""
    return Learner(
        nnx.eval_shape(lambda: as_critic(new_model(config), config.seed)),
        make_optimizer(config.critic_optim, config.steps * config.rl.critic_minibatches),
        step_options(config, CriticLoss(config.rl.value_clip)),
        read_critic,
        trainable=("decoder", "value_head"),
        rules=rules,
    )


def as_critic(model: StepAudio, seed: int) -> StepAudio:
    make_critic(model, nnx.Rngs(seed))
    return model


def engine_options(config: Config) -> EngineOptions:
    rl = config.rl
    own = rl.engine
    return EngineOptions(max_rows=own.max_rows, max_length=rl.row_tokens, pages=own.pages or None, burst=own.burst)


def sampling_of(config: Config) -> SamplingParams:
    rl = config.rl
    return SamplingParams(temperature=rl.temperature, top_p=rl.top_p, top_k=rl.top_k, max_new_tokens=rl.max_new_tokens)
