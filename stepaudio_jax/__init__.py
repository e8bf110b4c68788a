"""Step-Audio-R1 in JAX: run, train and serve an open audio reasoner, on a laptop or a TPU pod.

from stepaudio_jax import StepAudio
reply = StepAudio.load("tiny").ask(["scene.wav"], "How many tones do you hear?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepaudio_jax.config import StepAudioConfig
    from stepaudio_jax.inference import Request, SamplingParams, StepAudio

__version__ = "0.1.0"

_WHERE = {
    "StepAudio": "stepaudio_jax.inference",
    "Request": "stepaudio_jax.inference",
    "SamplingParams": "stepaudio_jax.inference",
    "StepAudioConfig": "stepaudio_jax.config",
}
__all__ = ["Request", "SamplingParams", "StepAudio", "StepAudioConfig"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that importing the package stays fast."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
