"""A sound file to what the model hears: its first channel, float32, 16 kHz. Anything doubtful is refused, by name."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from etils import epath

from stepaudio_jax.audio import lengths

BLOCK = 1 << 18
"""Frames read at a time, so that of many channels only the first is ever kept."""

FFMPEG_SECONDS = 600
MIN_SAMPLES = 321


class AudioError(ValueError):
    """Sound that cannot be used; the message names the file and the cause."""


def load_audio(path: epath.PathLike, *, max_seconds: float | None = None) -> np.ndarray:
    """Reads a sound file: float32 [samples], 16 kHz, first channel.

    libsndfile reads wav, flac, ogg, mp3 and others; where ffmpeg is on the PATH, it reads the rest (local files only).

    Args:
      max_seconds: refuse longer sound.

    Raises:
      AudioError: missing, empty, truncated or unreadable file; no samples, too few, too many, or not finite.
    """
    file = epath.Path(path)
    if not file.exists():
        raise AudioError(f"{path}: no such file")
    if file.is_dir():
        raise AudioError(f"{path}: a folder, expected a sound file")
    size = file.stat().length
    if size == 0:
        raise AudioError(f"{path}: the file is empty")
    with file.open("rb") as stream:
        try:
            samples, rate = _read(stream, size, str(path), max_seconds)
        except soundfile.LibsndfileError as error:
            samples, rate = _read_by_ffmpeg(str(path), error, max_seconds)
    return _finish(samples, rate, str(path))


def load_audio_bytes(data: bytes, name: str = "audio", *, max_seconds: float | None = None) -> np.ndarray:
    """The same from bytes, for formats that libsndfile reads. Raises AudioError."""
    if not data:
        raise AudioError(f"{name}: no bytes")
    try:
        return _finish(*_read(io.BytesIO(data), len(data), name, max_seconds), name)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: not a sound file ({_cause(error)})") from None


def check_samples(samples: np.ndarray, name: str = "audio") -> np.ndarray:
    """Checks a waveform at 16 kHz and gives it as float32 [samples].

    Raises:
      AudioError: not one-dimensional floats, not finite, or too short for one audio token.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: expected floats of shape [samples], found {samples.dtype} {list(samples.shape)}")
    if len(samples) == 0:
        raise AudioError(f"{name}: holds no sound (0 samples)")
    _check_finite(samples, lengths.SAMPLE_RATE, name)
    if len(samples) < MIN_SAMPLES:
        raise AudioError(
            f"{name}: {len(samples) / lengths.SAMPLE_RATE:.4f} s of sound; one audio token needs more than "
            f"{(MIN_SAMPLES - 1) / lengths.SAMPLE_RATE:.3f} s"
        )
    return samples.astype(np.float32, copy=False)


def _read(stream: BinaryIO, size: int, name: str, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """The first channel at its own rate."""
    if missing := _missing_bytes(stream, size):
        raise AudioError(f"{name}: truncated, {missing} bytes that its header promises are missing")
    with soundfile.SoundFile(stream) as sound:
        rate, promised = sound.samplerate, sound.frames
        known = 0 <= promised < 2**62  # a stream of unknown length says 2^63 − 1
        if max_seconds is not None and known and promised > max_seconds * rate:
            raise AudioError(f"{name}: {promised / rate:.0f} s of sound, more than the {max_seconds:g} s allowed")
        blocks, count = [], 0
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block[:, 0].copy())
            count += len(block)
            if max_seconds is not None and count > max_seconds * rate:
                raise AudioError(f"{name}: more than the {max_seconds:g} s of sound allowed")
        if known and count < promised:
            raise AudioError(f"{name}: truncated, {count} of {promised} samples could be read")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate


def _missing_bytes(stream: BinaryIO, size: int) -> int:
    """Bytes of a wav's data that its header promises and the file lacks: libsndfile silently reads what is there."""
    head = stream.read(12)
    missing = 0
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        while len(header := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                streamed = length in (0, 0xFFFFFFFF) or length >= 0x7FFFF000  # written before the length was known
                missing = 0 if streamed else max(0, stream.tell() + length - size)
                break
            stream.seek(length + length % 2, io.SEEK_CUR)
    stream.seek(0)
    return missing


def _read_by_ffmpeg(path: str, error: soundfile.LibsndfileError, max_seconds: float | None) -> tuple[np.ndarray, int]:
    program = shutil.which("ffmpeg")
    if program is None or "://" in path:
        raise AudioError(
            f"{path}: not a sound file that libsndfile reads ({_cause(error)}); "
            "wav, flac, ogg and mp3 it does, and with ffmpeg on the PATH local files of most other formats work too"
        )
    command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    command += ["-map", "0:a:0", "-af", "pan=mono|c0=c0", "-c:a", "pcm_f32le", "-f", "wav"]
    command += ["-t", str(max_seconds + 1)] if max_seconds is not None else []
    try:
        done = subprocess.run([*command, "pipe:1"], capture_output=True, timeout=FFMPEG_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise AudioError(f"{path}: ffmpeg did not finish within {FFMPEG_SECONDS} s") from None
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise AudioError(f"{path}: neither libsndfile nor ffmpeg can read it ({said[-1] if said else _cause(error)})")
    return _read(io.BytesIO(done.stdout), len(done.stdout), path, max_seconds)


def _finish(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    _check_finite(samples, rate, name)  # before resampling, which would smear one bad sample over its neighbours
    if rate != lengths.SAMPLE_RATE and len(samples):
        samples = soxr.resample(samples, rate, lengths.SAMPLE_RATE, quality="HQ")
    return check_samples(samples, name)


def _check_finite(samples: np.ndarray, rate: int, name: str):
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite)) / rate
        raise AudioError(f"{name}: {int((~finite).sum())} samples are not finite numbers, the first at {first:.3f} s")


def _cause(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".")
