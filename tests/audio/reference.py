"""The front end again, in numpy's float64 and librosa's filters, from MODEL.md §3 and nothing of the package."""

import functools

import librosa
import numpy as np

SIGNALS_HZ = (100, 440, 500, 800, 1234.5, 2000, 4000)


@functools.cache
def mel_bank() -> np.ndarray:
    return librosa.filters.mel(sr=16000, n_fft=400, n_mels=128, dtype=np.float64)


def log_mel_float64(samples: np.ndarray) -> np.ndarray:
    """[N] at 16 kHz to [T, 128], in blocks of frames so that half an hour fits in memory."""
    padded = np.pad(samples.astype(np.float64), (0, 479))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, 200, mode="reflect"), 400)[::160][:-1]
    assert len(frames) == (len(samples) + 479) // 160
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    logs = [
        np.log10(np.maximum(np.abs(np.fft.rfft(frames[at : at + 4096] * window)) ** 2 @ mel_bank().T, 1e-10))
        for at in range(0, len(frames), 4096)
    ]
    logs = np.concatenate(logs)
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def square_wave(hertz: float, samples: int) -> np.ndarray:
    """Full scale."""
    return np.where(np.sin(2 * np.pi * hertz * np.arange(samples) / 16000 + 0.1) < 0, -1, 1).astype(np.float32)


def half_hour() -> np.ndarray:
    """30 minutes of 16 kHz sound that swells from silence to full scale and back: a minute's chirp over noise."""
    time = np.arange(60 * 16000) / 16000
    minute = 0.8 * np.sin(2 * np.pi * (200 * time + 1000 * np.sin(time / 3)))
    minute = np.clip(minute + np.random.default_rng(0).normal(0, 0.05, len(time)), -1, 1).astype(np.float32)
    swell = np.sin(np.linspace(0, np.pi, 30 * len(time), dtype=np.float32)) ** 2
    return np.tile(minute, 30) * swell
