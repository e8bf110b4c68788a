"""Generation: requests in, events out; the engine; the session a user holds."""

from stepaudio_jax.inference.engine import Engine, QueueFull
from stepaudio_jax.inference.options import EngineOptions, EngineStats
from stepaudio_jax.inference.refusal import PromptError
from stepaudio_jax.inference.row import Prepared
from stepaudio_jax.inference.session import StepAudio, load_engine, sampling_defaults, serving_dtype
from stepaudio_jax.inference.types import (
    AudioProgress,
    Completion,
    Event,
    Finished,
    Generate,
    LongAudio,
    Request,
    SamplingParams,
    SoundSplit,
    TextDelta,
    TokenScore,
    Usage,
    WindowFinished,
    WindowReply,
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
    "LongAudio",
    "Prepared",
    "PromptError",
    "QueueFull",
    "Request",
    "SamplingParams",
    "SoundSplit",
    "StepAudio",
    "TextDelta",
    "TokenScore",
    "Usage",
    "WindowFinished",
    "WindowReply",
    "load_engine",
    "sampling_defaults",
    "serving_dtype",
]
