"""What an operator decides about a server; the defaults are those of `stepaudio serve`."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from stepaudio_jax.inference import LongAudio, SamplingParams
from stepaudio_jax.inference.audio_input import MAX_SPLIT_SECONDS

Reasoning = Literal["apart", "inline", "none"]
"""Where the model's thinking goes: into `reasoning_content`, into `content` as it was written, or nowhere."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    model_names: what clients may call the model; the first is what answers call it.
    sampling: of requests that do not say.
    reasoning: where thinking goes, of requests that do not say.
    api_keys: one of them is asked of every request but /health; empty asks for none.
    allow_files: folder whose files requests may name as sound; None allows no file.
    max_body_bytes: of a request.
    max_audio_seconds: of all sound of a request; None: as much as the model has positions for.
    max_split_seconds: the same, of a request that asks for sound to be split where it does not fit.
    long_audio: how sound that does not fit is split, of requests that do not say; None refuses it.
    max_choices: most replies that one request asks for.
    max_requests: requests taken in at a time, those that wait included; more are refused with 429.
    request_seconds: from the first byte of a request to the last of its answer.
    drain_seconds: that running requests get to end in after SIGTERM or ctrl-C.
    workers: threads that decode sound and tokenise.
    transcribe: what the model is asked for in /v1/audio/transcriptions.
    """

    model_names: tuple[str, ...] = ("tiny",)
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    reasoning: Reasoning = "apart"
    api_keys: tuple[str, ...] = ()
    allow_files: str | None = None
    max_body_bytes: int = 128 << 20
    max_audio_seconds: float | None = None
    max_split_seconds: float = MAX_SPLIT_SECONDS
    long_audio: LongAudio | None = None
    max_choices: int = 16
    max_requests: int = 512
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    workers: int = min(4, os.cpu_count() or 1)
    transcribe: str = "Write down what is said in this recording, word for word."
