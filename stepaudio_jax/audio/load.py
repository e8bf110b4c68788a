"""A sound file to what the model hears: its first channel, float32, 16 kHz. Anything doubtful is refused, by name."""

from __future__ import annotations

import io
import shutil
import tempfile
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from etils import epath

from stepaudio_jax.audio import ffmpeg, lengths, promises

BLOCK = 1 << 18
"""Values read at a time over all channels: of many channels only the first is ever kept."""

RATES = (1_000, 1_000_000)
"""Sample rates believed, in Hz: a header that lies about them would blow a small file up a thousandfold."""


class AudioError(ValueError):
    """Sound that cannot be used; the message is one line that names the file and the cause."""


class AudioTooLong(AudioError):
    """More sound than is allowed."""


def load_audio(path: epath.PathLike, *, max_seconds: float | None = None) -> np.ndarray:
    """Reads a sound file, local or gs://: float32 [samples], 16 kHz, first channel.

    libsndfile reads wav, flac, ogg, mp3 and others; where ffmpeg is on the PATH, it reads most of the rest. An ogg
    states no length anywhere, so one that was cut off is read as far as it goes.

    Args:
      max_seconds: refuse longer sound.

    Raises:
      AudioError: missing, empty, truncated or unreadable file; no samples, too few, too many, or not finite.
    """
    name = str(path)
    try:
        file = epath.Path(path)
        if not file.exists():
            raise AudioError(f"{name}: no such file")
        if file.is_dir():
            raise AudioError(f"{name}: a folder, expected a sound file")
        size = file.stat().length
        if size == 0:
            raise AudioError(f"{name}: the file is empty")
        with file.open("rb") as stream:
            return _load(stream, size, name, None if "://" in name else name, max_seconds)
    except OSError as error:
        raise AudioError(f"{name}: {error.strerror or error}") from None
    except ImportError as error:  # what epath needs for gs://
        raise AudioError(f"{name}: {error}") from None


def load_audio_bytes(data: bytes, name: str = "audio", *, max_seconds: float | None = None) -> np.ndarray:
    """The same from the bytes of a file; `name` is what errors call it. Raises AudioError."""
    if not data:
        raise AudioError(f"{name}: the file is empty")
    return _load(io.BytesIO(data), len(data), name, None, max_seconds)


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
    if len(samples) < lengths.MIN_SAMPLES:
        raise AudioError(
            f"{name}: {len(samples) / lengths.SAMPLE_RATE:.4f} s of sound; one audio token needs more than "
            f"{(lengths.MIN_SAMPLES - 1) / lengths.SAMPLE_RATE:.3f} s"
        )
    return samples.astype(np.float32, copy=False)


class _Stream(io.BufferedReader):
    """What soundfile reads from. It looks at a file's name and takes one in .raw for a format that needs its rate
    told, so there is none; and broken files make it seek before the start, where it prints a traceback on an error.
    """

    name = None  # pyright: ignore[reportAssignmentType]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return self.tell()


def _load(source: Any, size: int, name: str, local: str | None, max_seconds: float | None) -> np.ndarray:
    """Reads an open file of `size` bytes; `local` is its path where ffmpeg can open it too."""
    stream = _Stream(source)
    if missing := promises.missing_bytes(stream, size):
        raise AudioError(f"{name}: truncated, {missing} bytes of sound that its header promises are missing")
    if (completed := promises.open_ended(stream, size)) is not None:
        stream = _Stream(io.BytesIO(completed))  # pyright: ignore[reportArgumentType]
    try:
        with soundfile.SoundFile(stream) as sound:
            is_mp3 = sound.format == "MP3"
    except soundfile.LibsndfileError as error:
        cause = f"not a sound file that libsndfile reads ({_cause(error)})"
        return _load_by_ffmpeg(stream, name, local, cause, max_seconds)
    held = promises.mp3_samples(stream) if is_mp3 else None
    stream.seek(0)
    with soundfile.SoundFile(stream) as sound:
        samples = _read(sound, name, max_seconds, exact=held is None)
        if held is not None and held - len(samples) > 4 * 1152:  # decoders drop a frame or two at the edges
            cause = f"an mp3 of varying bit rate without a length: libsndfile reads {len(samples)} of {held} samples"
            return _load_by_ffmpeg(stream, name, local, cause, max_seconds)
        return _finish(samples, sound.samplerate, name)


def _load_by_ffmpeg(
    stream: BinaryIO, name: str, local: str | None, cause: str, max_seconds: float | None
) -> np.ndarray:
    try:
        if local is not None:
            wav = ffmpeg.decode(local, max_seconds)
        else:
            with tempfile.NamedTemporaryFile() as copy:  # not a pipe: m4a is read back and forth
                stream.seek(0)
                shutil.copyfileobj(stream, copy)
                copy.flush()
                wav = ffmpeg.decode(copy.name, max_seconds)
    except ffmpeg.FfmpegError as error:
        raise AudioError(f"{name}: {cause}, and {error}") from None
    with soundfile.SoundFile(io.BytesIO(wav)) as sound:
        return _finish(_read(sound, name, max_seconds), sound.samplerate, name)


def _read(sound: soundfile.SoundFile, name: str, max_seconds: float | None, *, exact: bool = True) -> np.ndarray:
    """The first channel at its own rate; `exact` unless the number of frames promised is a guess."""
    rate, promised = sound.samplerate, sound.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: a sample rate of {rate} Hz, expected {RATES[0]} to {RATES[1]}")
    exact = exact and promised < 2**62  # a stream of unknown length says 2^63 − 1
    if max_seconds is not None and exact and promised > max_seconds * rate:
        raise AudioTooLong(f"{name}: {promised / rate:.1f} s of sound, more than the {max_seconds:g} s allowed")
    blocks, count, at_once = [], 0, max(1, BLOCK // sound.channels)
    try:
        while len(block := sound.read(at_once, dtype="float32", always_2d=True)):
            blocks.append(block[:, 0].copy())
            count += len(block)
            if max_seconds is not None and count > max_seconds * rate:
                raise AudioTooLong(f"{name}: more than the {max_seconds:g} s of sound allowed")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: truncated or broken ({_cause(error)})") from None
    if exact and count < promised:
        raise AudioError(f"{name}: truncated, {count} of {promised} samples could be read")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _finish(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    """Checked and at 16 kHz."""
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
    return error.error_string.removeprefix("Error : ").strip().rstrip(".") or f"libsndfile error {error.code}"
