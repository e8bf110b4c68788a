"""A small policy on a toy task, for tests: replies of even tokens are good."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from stepaudio_jax.inference import Engine, EngineOptions, Request, SamplingParams
from stepaudio_jax.models import make_critic
from stepaudio_jax.parallel import ShardingRules, make_mesh
from stepaudio_jax.rl import ppo
from stepaudio_jax.rl.learner import Learner, PolicyReader, read_critic
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import CriticLoss, PolicyLoss
from stepaudio_jax.rl.rollout import Layout, Prompt, rollout, to_example
from stepaudio_jax.text import Audio, Conversation, human
from stepaudio_jax.training.step import StepOptions
from tests import small

WORDS = 4


@functools.cache
def prompts(sound: bool = True) -> tuple[Prompt, ...]:
    said = ["Go", "On", "Up"]
    parts = [(Audio(small.sound(0.4 + i / 10, i)), text) if sound else (text,) for i, text in enumerate(said)]
    return tuple(Prompt(Conversation((human(*part),)), "x", "toy", "exact") for part in parts)


def one_device() -> ShardingRules:
    return ShardingRules(make_mesh({}, jax.devices()[:1]))


@functools.cache
def made(optimizer, rate: float):
    """The same object for the same arguments, so that learners with it share their compiled passes."""
    return optimizer(rate)


def learners(mesh=None, *, rate=3e-3, objective=None, seed=0, critic=True, optimizer=optax.adam):
    rules = ShardingRules(mesh) if mesh else one_device()
    model = small.model(scale=1.0, seed=seed)
    policy = Learner(
        model,
        made(optimizer, rate),
        StepOptions(objective=objective or PolicyLoss(Clip())),
        PolicyReader(1.0, 1),
        trainable=("decoder",),
        rules=rules,
    ).begin(model)
    if not critic:
        return policy, None
    with_head = small.model(scale=1.0, seed=seed)
    make_critic(with_head, nnx.Rngs(0))
    own = Learner(
        with_head,
        made(optimizer, 3 * rate),
        StepOptions(objective=CriticLoss()),
        read_critic,
        trainable=("decoder", "value_head"),
        rules=rules,
    )
    return policy, own.begin(with_head)


LAYOUT = Layout(rows=8, length=64, sound_rows=1, sound_samples=20 * 1280)


def engine_of(policy: Learner) -> Engine:
    return Engine(policy.model(jnp.float32), small.tokenizer(), EngineOptions(max_rows=32, max_length=64, pages=256))


def play(engine, asked, samples, seed, words=WORDS):
    """(a rollout, its mean reward): the share of even tokens of a reply."""
    sampling = SamplingParams(temperature=1.0, max_new_tokens=words)
    sampled = rollout(engine, asked, samples, sampling, seed)
    scores = np.array([np.mean([t % 2 == 0 for t in each.token_ids]) for each in sampled], np.float32)
    prepared = [engine.prepare(Request(prompt.conversation)) for prompt in asked]
    examples = [to_example(each, prepared[each.prompt]) for each in sampled]
    return ppo.Rollout(sampled, examples, scores, np.ones(len(scores), bool)), float(scores.mean())


def learn(options: ppo.PPO, *, updates: int, seed: int, rate: float = 3e-3, objective=None) -> list[float]:
    """Mean rewards of the updates."""
    policy, critic = learners(rate=rate, objective=objective, critic=options.baseline == "critic")
    engine, found = engine_of(policy), []
    for number in range(updates):
        played, reward = play(engine, prompts(), options.samples, (seed, number))
        found.append(reward)
        ppo.update(played, options, LAYOUT, policy, critic)
        engine.update(policy.model(jnp.float32))
    return found
