"""The one owner of every audio length (MODEL.md §4): samples, mel frames, conv frames, 25 Hz, 12.5 Hz, tokens.

All functions are integer arithmetic on ints, numpy and jax arrays alike.
"""

from __future__ import annotations

from typing import Any

SAMPLE_RATE = 16_000
HOP = 160
TAIL = 479
"""Zeros put after a chunk before the transform."""

MAX_POSITIONS = 1500
MAX_CHUNK_SAMPLES = 2 * MAX_POSITIONS * HOP - TAIL + HOP - 1
"""The most that fills no more than 1,500 positions: 479,680, 29.98 s."""

CHUNK_SECONDS = 25
CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE
MIN_SAMPLES = 321
"""The least that gives an audio token: just over 0.020 s."""

LENGTH_RULES = ("hf", "vllm")


def mel_frames(samples: Any) -> Any:
    """T, the mel frames computed from so many samples."""
    return (samples + TAIL) // HOP


def counted_frames(samples: Any, length_rule: str = "hf") -> Any:
    """L, the mel frames counted as audio: T − 2 = ceil(samples / 160) by "hf", T by "vllm"."""
    if length_rule not in LENGTH_RULES:
        raise ValueError(f'length_rule: expected one of {", ".join(LENGTH_RULES)}, found "{length_rule}"')
    return mel_frames(samples) - (2 if length_rule == "hf" else 0)


def conv_frames(samples: Any) -> Any:
    """C, frames after the stride-2 convolution (50 Hz)."""
    return (mel_frames(samples) - 1) // 2 + 1


def pooled_frames(samples: Any) -> Any:
    """P, the encoder's rows (25 Hz)."""
    return conv_frames(samples) // 2


def adaptor_frames(samples: Any) -> Any:
    """A, the adaptor's rows (12.5 Hz), at least as many as the tokens."""
    return (pooled_frames(samples) - 1) // 2 + 1


def audio_tokens(samples: Any, length_rule: str = "hf") -> Any:
    """n, the `<audio_patch>` tokens of a chunk; 0 for chunks of at most 320 samples under "hf"."""
    pooled = (counted_frames(samples, length_rule) + 1) // 2 // 2
    return (pooled - 1) // 2 + 1
