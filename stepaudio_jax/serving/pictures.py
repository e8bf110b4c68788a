"""What a clip looks like: its waveform, and the log-mel features that the model hears it by."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from stepaudio_jax.audio import SAMPLE_RATE, chunk, lengths, log_mel, stack
from stepaudio_jax.audio.mel import N_FFT, mel_filters

COLUMNS = 1200
"""Most of a picture: of longer sound each shows the extremes of several."""

TICKS = (125, 500, 1000, 2000, 4000, 7000)
"""In Hz."""


def picture(samples: Float[np.ndarray, " N"]):
    """A matplotlib figure of sound at 16 kHz; some 0.4 s for an hour."""
    from matplotlib.figure import Figure

    seconds = len(samples) / SAMPLE_RATE
    figure = Figure(figsize=(7, 3), layout="constrained")
    wave, mel = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    low, high = envelope(samples)
    wave.fill_between(np.linspace(0, seconds, len(low)), low, high, linewidth=0.5, color="#e8710a")
    wave.set_ylim(-1.05 * (peak := max(float(np.abs(samples).max()), 1e-4)), 1.05 * peak)
    wave.set_ylabel("wave", fontsize=8)
    features = mel_columns(samples)
    mel.imshow(features.T, origin="lower", aspect="auto", extent=(0, seconds, 0, features.shape[1]), cmap="magma")
    centres = mel_filters().argmax(axis=0) * SAMPLE_RATE / N_FFT
    mel.set_yticks([int(np.abs(centres - tick).argmin()) for tick in TICKS], [str(tick) for tick in TICKS])
    mel.set_ylabel("log-mel, Hz", fontsize=8)
    mel.set_xlabel("seconds", fontsize=8)
    for axes in (wave, mel):
        axes.tick_params(labelsize=7)
    return figure


def envelope(samples: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest sample of each column."""
    starts = _starts(len(samples))
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def mel_columns(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "columns 128"]:
    """The log-mel features of a clip as the engine cuts it, the greatest value of each column.

    Computed on the CPU, chunk by chunk: the accelerator is the engine's.
    """
    frames = []
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for piece in chunk(samples):
            rows, sizes = stack([piece])
            features = np.asarray(_log_mel()(rows, sizes))[0]
            frames.append(features[: lengths.mel_frames(len(piece))])
    joined = np.concatenate(frames)
    return np.maximum.reduceat(joined, _starts(len(joined)), axis=0)


def _starts(count: int) -> np.ndarray:
    return np.linspace(0, count, min(count, COLUMNS), endpoint=False).astype(int)


@functools.cache
def _log_mel() -> Any:
    return jax.jit(log_mel)
