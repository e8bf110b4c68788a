"""A server that speaks OpenAI's protocol over the batching engine."""

from stepaudio_jax.serving.app import create_app
from stepaudio_jax.serving.runner import Runner
from stepaudio_jax.serving.settings import Settings

__all__ = ["Runner", "Settings", "create_app"]
