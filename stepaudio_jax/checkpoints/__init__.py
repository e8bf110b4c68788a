"""Checkpoints on disk: a folder that holds config.json, tokenizer.json and Orbax arrays."""

from stepaudio_jax.checkpoints.checkpoint import CheckpointError, load, resolve, save

__all__ = ["CheckpointError", "load", "resolve", "save"]
