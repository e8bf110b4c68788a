"""Checkpoints on disk: a folder that holds config.json, tokenizer.json and Orbax arrays. The one importer of Orbax."""

from stepaudio_jax.checkpoints.adapters import (
    LORA,
    describe,
    fingerprint,
    is_adapters,
    load,
    load_adapters,
    read_about,
    read_config,
    save_adapters,
)
from stepaudio_jax.checkpoints.checkpoint import (
    Placement,
    load_tokenizer,
    locate,
    read_tokenizer,
    resolve,
    save,
    wait_for_all,
)
from stepaudio_jax.checkpoints.layout import CheckpointError
from stepaudio_jax.checkpoints.run import Restored, Retention, RunCheckpoints

__all__ = [
    "LORA",
    "CheckpointError",
    "Placement",
    "Restored",
    "Retention",
    "RunCheckpoints",
    "describe",
    "fingerprint",
    "is_adapters",
    "load",
    "load_adapters",
    "load_tokenizer",
    "locate",
    "read_about",
    "read_config",
    "read_tokenizer",
    "resolve",
    "save",
    "save_adapters",
    "wait_for_all",
]
