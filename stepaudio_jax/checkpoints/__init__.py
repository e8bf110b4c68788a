"""Checkpoints on disk: a folder that holds config.json, tokenizer.json and Orbax arrays. The one importer of Orbax."""

from stepaudio_jax.checkpoints.checkpoint import Placement, load, load_tokenizer, locate, resolve, save, wait_for_all
from stepaudio_jax.checkpoints.layout import CheckpointError
from stepaudio_jax.checkpoints.run import Restored, Retention, RunCheckpoints

__all__ = [
    "CheckpointError",
    "Placement",
    "Restored",
    "Retention",
    "RunCheckpoints",
    "load",
    "load_tokenizer",
    "locate",
    "resolve",
    "save",
    "wait_for_all",
]
