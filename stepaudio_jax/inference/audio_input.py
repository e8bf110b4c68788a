"""The sound of a request, from files and arrays, no more of it than the model has positions for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath

from stepaudio_jax.audio import AudioTooLong, check_samples, load_audio
from stepaudio_jax.text import Audio

Sound = str | epath.PathLike | np.ndarray | Audio

AUDIO_TOKENS_PER_SECOND = 12.5
"""MODEL.md §4."""

MAX_SPLIT_SECONDS = 4 * 3600.0
"""Of all sound of a request that asks for sound to be split where it does not fit."""


def max_seconds(positions: int, *, split: bool) -> float:
    """Of all sound of a request to a model of so many positions; `split` says that it need not fit into one prompt."""
    return MAX_SPLIT_SECONDS if split else positions / AUDIO_TOKENS_PER_SECOND


def load_sounds(sounds: Sequence[Sound], positions: int, *, split: bool) -> list[Audio]:
    """Clips from paths, arrays (float, 16 kHz), and clips.

    Files are decoded no further than `max_seconds` for all of them. An array is in memory already: the engine says
    whether it fits into a prompt.

    Raises:
      AudioError: one that cannot be used, and why.
    """
    left, clips = max_seconds(positions, split=split), []
    for sound in sounds:
        if isinstance(sound, Audio):
            clip = Audio(check_samples(sound.samples, sound.name), sound.name)
        elif isinstance(sound, np.ndarray):
            clip = Audio(check_samples(sound))
        else:
            try:
                clip = Audio(load_audio(sound, max_seconds=left), str(sound))
            except AudioTooLong as error:
                raise AudioTooLong(f"{error}{too_long_advice(positions, split=split)}") from None
        left = max(0.0, left - clip.seconds)
        clips.append(clip)
    return clips


def too_long_advice(positions: int, *, split: bool) -> str:
    """What to do about sound that is too long, for the end of a message."""
    if split:
        return "; ask about a shorter piece"
    return (
        f' by the {positions} positions of the model; let it be heard in windows with long_audio="split" '
        "(--long-audio split), or ask about a shorter piece"
    )
