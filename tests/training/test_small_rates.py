"""Rates of 1e-6, far below the spacing of bfloat16: with float32 parameters they add up, whatever is computed in."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import sft_33b
from stepaudio_jax import training
from stepaudio_jax.data import Batch
from tests import small

STEPS, RATE = 50, 1e-6


def data(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 520, (4, 24), np.int32)
    positions, ones = np.broadcast_to(np.arange(24, dtype=np.int32), (4, 24)), np.ones_like(tokens)
    return Batch(tokens, positions, ones, rng.random((4, 24)) < 0.7, np.zeros_like(tokens), None)


def moved(compute_dtype, kept):
    """How far STEPS steps take the decoder's parameters, as one vector; they are stored as `kept` leaves them."""
    config = sft_33b.get_config().optim
    config.update({"learning_rate": RATE, "schedule": "constant", "warmup_steps": 0})
    optimizer = training.make_optimizer(config, STEPS)
    graphdef, state = training.init_state(
        small.model(scale=1.0), optimizer, trainable=("decoder",), frozen_dtype=compute_dtype
    )
    step = jax.jit(training.make_train_step(graphdef, optimizer, training.StepOptions(compute_dtype=compute_dtype)))
    first = kept(state.params)
    state = state._replace(params=first)
    for number in range(STEPS):
        state, _ = step(state, data(number))
        state = state._replace(params=kept(state.params))
    difference = jax.tree.map(lambda new, old: np.asarray(new, np.float64) - np.asarray(old), state.params, first)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(difference)])


def as_they_are(params):
    return params


def rounded(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)


def test_50_steps_move_the_weights_as_pure_float32_does():
    mixed, pure = moved(jnp.bfloat16, as_they_are), moved(jnp.float32, as_they_are)
    size = np.linalg.norm(pure)
    assert size > 0.1 * RATE * STEPS * len(pure) ** 0.5  # Adam moves each by up to RATE a step
    assert abs(np.linalg.norm(mixed) / size - 1) < 0.005
    assert mixed @ pure / (np.linalg.norm(mixed) * size) > 0.995
    # In bfloat16 each step would be rounded away; training such parameters is refused (test_training.py).
    assert np.linalg.norm(moved(jnp.bfloat16, rounded)) < 0.1 * size
