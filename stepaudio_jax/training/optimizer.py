"""AdamW with decoupled decay on matrices only, warm-up, cosine decay and gradient clipping, all from Optax."""

from __future__ import annotations

import jax
import optax

from stepaudio_jax.training.configs import Config


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """The optimizer of a config's `optim` section.

    Args:
      config: learning_rate, end_learning_rate, warmup_steps, b1, b2, weight_decay, clip_norm.
      steps: total steps of the schedule.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_decays,
        ),
    )


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    if config.warmup_steps >= steps:
        raise ValueError(
            f"optim.warmup_steps: expected fewer than the {steps} steps of the run, found {config.warmup_steps}"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, steps, config.end_learning_rate
    )


def _decays(params):
    """Kernels and tables decay; norm scales and biases, which stacked layers make two-dimensional, do not."""
    return jax.tree_util.tree_map_with_path(
        lambda key, _: str(getattr(key[-1], "key", "")) not in ("scale", "bias"), params
    )
