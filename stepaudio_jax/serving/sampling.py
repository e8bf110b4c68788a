"""What a request says about sampling and about long sound, over what the server does unasked."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Literal

from stepaudio_jax.inference import LongAudio, SamplingParams
from stepaudio_jax.serving.errors import ApiError
from stepaudio_jax.serving.protocol import ChatRequest, CompletionRequest, Generation, LongAudioOptions

SEEDS = 2**32


def to_sampling(asked: Generation, defaults: SamplingParams, max_choices: int) -> list[SamplingParams]:
    """The sampling of each of the replies asked for: they differ in their seed. Without one it is drawn.

    Raises:
      ApiError: more replies than are allowed.
    """
    n = asked.n or 1
    if n > max_choices:
        raise ApiError(f"n: expected at most {max_choices}, found {n}", param="n", code="invalid_value")
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": None if asked.top_k is None else max(0, asked.top_k),
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "max_new_tokens": asked.max_tokens,
        "stop": (asked.stop,) if isinstance(asked.stop, str) else None if asked.stop is None else tuple(asked.stop),
        "stop_token_ids": None if asked.stop_token_ids is None else tuple(dict.fromkeys(asked.stop_token_ids)),
        "think_budget": asked.thinking_token_budget if asked.think_budget is None else asked.think_budget,
    }
    if isinstance(asked, ChatRequest):
        given["max_new_tokens"] = asked.max_completion_tokens or asked.max_tokens
        given["top_log_probs"] = asked.top_logprobs
    elif isinstance(asked, CompletionRequest):
        given["top_log_probs"] = asked.logprobs
    sampling = dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})
    seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed
    return [dataclasses.replace(sampling, seed=(seed + i) % SEEDS) for i in range(n)]


def to_long_audio(
    asked: Literal["refuse", "split"] | LongAudioOptions | None, default: LongAudio | None
) -> LongAudio | None:
    """How sound that does not fit is split; None where it is refused. What is left open is as LongAudio has it.

    Raises:
      ApiError: an option that there is not; a window that its overlap does not fit into.
    """
    if asked is None:
        return default
    if isinstance(asked, str):
        return LongAudio.of(asked)
    if unknown := sorted(asked.model_extra or {}):
        known = ", ".join(LongAudioOptions.model_fields)
        raise ApiError(
            f"long_audio.{unknown[0]}: no such option; expected {known}", param="long_audio", code="invalid_value"
        )
    try:
        return LongAudio.of("split", **dict(asked))
    except ValueError as error:
        raise ApiError(f"long_audio.{error}", param="long_audio", code="invalid_value") from None
