"""One hour of sound to log-mel, in chunks of 25 s, beside transformers' WhisperFeatureExtractor, on this CPU.

    make bench, or: .venv-parity/bin/python -m benchmarks.frontend [--hours 1] [--repeat 5] [--quick]

From samples in memory to features in memory, cutting, padding and copies included on both sides. The extractor has
two paths: torch, which it takes wherever torch is installed, and numpy. It pads to the longest chunk, not to its
default of 30 s, which would only be slower. Repetitions take turns, so that a busy machine slows all alike; the
times are medians, the ratio is to the extractor's fastest way. Compilation is told apart and counted nowhere else.

The accuracy is the absolute difference to float64 (numpy and librosa's filters) over the first ten minutes. For that
alone the extractor is given the 479 zeros that the release puts behind a chunk (MODEL.md §3): that makes the two equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import jax
import librosa
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.models.whisper import feature_extraction_whisper

from stepaudio_jax.audio import SAMPLE_RATE, chunk, lengths, log_mel, stack

transform = jax.jit(log_mel)
extractor = transformers.WhisperFeatureExtractor(feature_size=128)


def hour(hours: float) -> np.ndarray:
    """Something like speech in a room: bursts of a gliding harmonic tone, pauses, noise 50 dB below."""
    rng = np.random.default_rng(0)
    time = np.arange(60 * SAMPLE_RATE) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 0.4 * time)) / SAMPLE_RATE
    voice = sum(np.sin(k * pitch) / k for k in range(1, 30)) * np.maximum(0, np.sin(2 * np.pi * 1.5 * time))
    minute = (0.25 * voice + rng.normal(0, 0.002, len(time))).astype(np.float32)
    return np.resize(minute, round(hours * 3600 * SAMPLE_RATE))


def ours(sound: np.ndarray, batch: int) -> list[np.ndarray]:
    """Features [B, F, 128], batch after batch."""
    pieces = chunk(sound)
    batches = (stack(pieces[at : at + batch]) for at in range(0, len(pieces), batch))
    return [np.asarray(features) for features in [transform(*one) for one in batches]]


def theirs(sound: np.ndarray, batch: int, tail: int = 0) -> list[np.ndarray]:
    """Features [B, 128, F] by the extractor's own choice of path."""
    pieces = [np.pad(piece, (0, tail)) if tail else piece for piece in chunk(sound)]
    options = {"sampling_rate": SAMPLE_RATE, "padding": "longest", "truncation": False, "return_tensors": "np"}
    return [extractor(pieces[at : at + batch], **options).input_features for at in range(0, len(pieces), batch)]


def theirs_numpy(sound: np.ndarray, batch: int, tail: int = 0) -> list[np.ndarray]:
    with mock.patch.object(feature_extraction_whisper, "is_torch_available", lambda: False):
        return theirs(sound, batch, tail)


def float64(piece: np.ndarray) -> np.ndarray:
    """The same features [T, 128] of one chunk in float64."""
    signal = np.pad(np.pad(piece.astype(np.float64), (0, lengths.TAIL)), 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(signal, 400)[::160][:-1]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2
    bank = librosa.filters.mel(sr=16000, n_fft=400, n_mels=128, dtype=np.float64)
    logs = np.log10(np.maximum(power @ bank.T, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def accuracy(sound: np.ndarray, run, transposed: bool) -> str:
    """Mean and largest absolute difference to float64."""
    mean, worst, count = 0.0, 0.0, 0
    for piece in chunk(sound):
        expected = float64(piece)
        found = run(piece)[0][0]
        found = found.T if transposed else found[: len(expected)]
        error = np.abs(found - expected)
        mean, worst, count = mean + error.sum(), max(worst, error.max()), count + error.size
    return f"{mean / count:.1e}, {worst:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three minutes, twice: does it run at all")
    args = parser.parse_args()
    hours, repeat = (0.05, 2) if args.quick else (args.hours, args.repeat)
    sound = hour(hours)

    runs = {
        ("ours", 1): ours,
        ("ours", 8): ours,
        ("transformers, torch", 1): theirs,
        ("transformers, torch", 8): theirs,
        ("transformers, numpy", 1): theirs_numpy,
    }
    compile_seconds = {}
    some = sound[: 8 * lengths.CHUNK_SAMPLES]
    for (name, batch), run in runs.items():
        start = time.perf_counter()
        run(some, batch)
        first = time.perf_counter() - start
        start = time.perf_counter()
        run(some, batch)
        compile_seconds[name, batch] = first - (time.perf_counter() - start)

    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(repeat):
        for key, run in runs.items():
            start = time.perf_counter()
            run(sound, key[1])
            times[key].append(time.perf_counter() - start)
    median = {key: statistics.median(mine) for key, mine in times.items()}
    best = min(seconds for (name, _), seconds in median.items() if name != "ours")

    part = sound[: 600 * SAMPLE_RATE]  # a minute repeats itself, and so do its errors
    errors = {
        "ours": accuracy(part, lambda piece: ours(piece, 1), False),
        "transformers, torch": accuracy(part, lambda piece: theirs(piece, 1, lengths.TAIL), True),
        "transformers, numpy": accuracy(part, lambda piece: theirs_numpy(piece, 1, lengths.TAIL), True),
    }

    console = Console(width=118)
    console.print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    table = Table(title=f"{hours:g} h of sound to log-mel, chunks of 25 s, median of {repeat} that take turns")
    columns = ("", "chunks at once", "seconds", "fastest", "× real time", "ratio", "compile", "error: mean, max")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for (name, batch), seconds in median.items():
        mine = name == "ours"
        table.add_row(
            name,
            str(batch),
            f"{seconds:.2f}",
            f"{min(times[name, batch]):.2f}",
            f"{hours * 3600 / seconds:,.0f}",
            f"{best / seconds:.2f}×",
            f"{compile_seconds[name, batch]:.1f} s" if mine else "",
            errors[name] if batch == 1 else "",
        )
    console.print(table)


if __name__ == "__main__":
    main()
