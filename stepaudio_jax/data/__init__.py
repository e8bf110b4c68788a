"""Conversations to batches."""

from stepaudio_jax.data.examples import Batch, Example, bucket, collate, encode, sound_shape

__all__ = ["Batch", "Example", "bucket", "collate", "encode", "sound_shape"]
