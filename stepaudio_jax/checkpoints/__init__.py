"""Checkpoints on disk: a folder that holds config.json, tokenizer.json and Orbax arrays. The one importer of Orbax."""

from stepaudio_jax.checkpoints.adapters import fingerprint, is_adapters, load, load_adapters, read_about, save_adapters
from stepaudio_jax.checkpoints.checkpoint import Placement, load_tokenizer, locate, resolve, save
from stepaudio_jax.checkpoints.layout import CheckpointError

__all__ = [
    "CheckpointError",
    "Placement",
    "fingerprint",
    "is_adapters",
    "load",
    "load_adapters",
    "load_tokenizer",
    "locate",
    "read_about",
    "resolve",
    "save",
    "save_adapters",
]
