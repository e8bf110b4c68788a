"""Supervised training: losses, optimizer, step, trainer."""

from stepaudio_jax.training.configs import read_config
from stepaudio_jax.training.losses import next_token_cross_entropy
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.step import TrainState, init_state, make_train_step, merge
from stepaudio_jax.training.supervised import init_model, train

__all__ = [
    "TrainState",
    "init_model",
    "init_state",
    "make_optimizer",
    "make_train_step",
    "merge",
    "next_token_cross_entropy",
    "read_config",
    "train",
]
