"""Generation: requests in, events out; the plain loop; the session a user holds."""

from stepaudio_jax.inference.loop import Generator, PromptError
from stepaudio_jax.inference.session import StepAudio
from stepaudio_jax.inference.types import (
    AudioProgress,
    Completion,
    Event,
    Finished,
    Generate,
    Request,
    SamplingParams,
    TextDelta,
    Usage,
)

__all__ = [
    "AudioProgress",
    "Completion",
    "Event",
    "Finished",
    "Generate",
    "Generator",
    "PromptError",
    "Request",
    "SamplingParams",
    "StepAudio",
    "TextDelta",
    "Usage",
]
