"""Supervised training: losses, optimizer, step, trainer."""

from stepaudio_jax.training.configs import read_config
from stepaudio_jax.training.initial import init_model
from stepaudio_jax.training.loop import train
from stepaudio_jax.training.losses import next_tokens, token_scores
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.profiler import parse_window
from stepaudio_jax.training.signals import Stopped
from stepaudio_jax.training.step import (
    StepOptions,
    TrainState,
    init_state,
    make_train_step,
    merge,
    split_model,
    state_specs,
)

__all__ = [
    "StepOptions",
    "Stopped",
    "TrainState",
    "init_model",
    "init_state",
    "make_optimizer",
    "make_train_step",
    "merge",
    "next_tokens",
    "parse_window",
    "read_config",
    "split_model",
    "state_specs",
    "token_scores",
    "train",
]
