"""Generation: requests in, events out; the engine; the session a user holds."""

from stepaudio_jax.inference.engine import Engine, PromptError, QueueFull
from stepaudio_jax.inference.options import EngineOptions, EngineStats
from stepaudio_jax.inference.row import Prepared
from stepaudio_jax.inference.session import StepAudio, sampling_defaults, serving_dtype
from stepaudio_jax.inference.types import (
    AudioProgress,
    Completion,
    Event,
    Finished,
    Generate,
    Request,
    SamplingParams,
    TextDelta,
    TokenScore,
    Usage,
)

__all__ = [
    "AudioProgress",
    "Completion",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Event",
    "Finished",
    "Generate",
    "Prepared",
    "PromptError",
    "QueueFull",
    "Request",
    "SamplingParams",
    "StepAudio",
    "TextDelta",
    "TokenScore",
    "Usage",
    "sampling_defaults",
    "serving_dtype",
]
