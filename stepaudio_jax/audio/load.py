"""A sound file to what the model hears: its first channel, float32, 16 kHz. Anything doubtful is refused, by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
from etils import epath
from jaxtyping import Float

from stepaudio_jax.audio import ffmpeg, flac, lengths, mp3, ogg, promises
from stepaudio_jax.audio.errors import AudioError, DamagedError
from stepaudio_jax.audio.files import as_file, unnamed
from stepaudio_jax.audio.waveform import PEAK, Waveform, beyond_full_scale, not_finite

BLOCK = 1 << 18
"""Values read at a time over all channels: of many channels only the first is ever kept."""


def load_audio(path: epath.PathLike, *, name: str | None = None, max_seconds: float | None = None) -> np.ndarray:
    """Reads a sound file, local or gs://: float32 [samples], 16 kHz, first channel.

    libsndfile reads wav, flac, ogg, mp3 and others; where ffmpeg is on the PATH, it reads most of the rest. Joined ogg,
    flac and mp3 files are read one after another; other joined files are refused.

    A file that was cut off is refused wherever it says how long it is. Some do not, and are read as far as they go:
    IRCAM, PAF and PVF; the XI that libsndfile writes; an mp3 whose first frame does not count the others; what was
    written to a pipe as wav, w64, au, caf or flac, a flac as far as its frames are whole.

    Issues an AudioWarning where the first channel is silent and another is not (`audio.collect_warnings`).

    Args:
      name: what errors call it; by default the path.
      max_seconds: refuse longer sound.

    Raises:
      AudioError: missing, empty, truncated or unreadable file; a damaged ogg or flac; no samples, too few, too many,
        not finite, or far beyond ±1.
    """
    name = str(path) if name is None else name
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
            return _load(stream, size, name, max_seconds)
    except OSError as error:
        raise AudioError(f"{name}: {error.strerror or error}") from None
    except ImportError as error:  # what epath needs for gs://
        raise AudioError(f"{name}: {error}") from None


def load_audio_bytes(data: bytes, name: str = "audio", *, max_seconds: float | None = None) -> np.ndarray:
    """The same from the bytes of a file; `name` is what errors call it. Raises AudioError."""
    if not data:
        raise AudioError(f"{name}: the file is empty")
    return _load(io.BytesIO(data), len(data), name, max_seconds)


def load_audio_array(
    samples: Float[np.ndarray, "samples channels"], rate: int, name: str = "audio", *, max_seconds: float | None = None
) -> np.ndarray:
    """The same from an array of floats at `rate` Hz. Raises AudioError."""
    waveform = Waveform(name, max_seconds)
    waveform.begin(rate, samples.shape[1], len(samples))
    at_once = max(1, BLOCK // samples.shape[1])
    for start in range(0, len(samples), at_once):
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
            waveform.add(samples[start : start + at_once].astype(np.float32))
    return check_samples(waveform.finish(), name)


def check_samples(samples: np.ndarray, name: str = "audio", *, max_seconds: float | None = None) -> np.ndarray:
    """Checks a waveform at 16 kHz and gives it as float32 [samples].

    Raises:
      AudioError: not one-dimensional floats, not finite, far beyond ±1, too long, or too short for one audio token.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name}: expected floats of shape [samples], found {samples.dtype} {list(samples.shape)}")
    if len(samples) == 0:
        raise AudioError(f"{name}: holds no sound (0 samples)")
    Waveform(name, max_seconds).begin(lengths.SAMPLE_RATE, promised=len(samples))
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite)) / lengths.SAMPLE_RATE
        raise AudioError(not_finite(name, int((~finite).sum()), first))
    if (peak := max(float(samples.max()), -float(samples.min()))) > PEAK:
        raise AudioError(beyond_full_scale(name, peak))
    if len(samples) < lengths.MIN_SAMPLES:
        raise AudioError(
            f"{name}: {len(samples) / lengths.SAMPLE_RATE:.4f} s of sound; one audio token needs more than "
            f"{(lengths.MIN_SAMPLES - 1) / lengths.SAMPLE_RATE:.3f} s"
        )
    return samples.astype(np.float32, copy=False)


class _Sound(soundfile.SoundFile):
    """A file read from its beginning to its end. soundfile would seek after each block, which a coder that needs what
    came before, and one that does not know its length, cannot do well."""

    def seekable(self) -> bool:
        return False


class _Link(NamedTuple):
    """One of the files in a file: there is more than one where files were joined.

    Attributes:
      pieces: of its bytes; None: the whole file, as it is.
      samples: of a channel, where libsndfile may not know; `dropped` of them, at most, may be missing at the edges.
      info: of a FLAC.
    """

    pieces: list[bytes | range] | None = None
    samples: int | None = None
    dropped: int = 0
    info: flac.Info | None = None


class _Incomplete(Exception):
    """libsndfile does not read all that there is; the message says how much."""


def _load(stream: IO[Any], size: int, name: str, max_seconds: float | None) -> np.ndarray:
    """Reads an open file of `size` bytes."""
    with as_file(stream, size) as file:
        try:
            promises.check_header(file, size)
            whole = _Link(promises.pieces(file, size), promises.caf_frames(file))
            file.seek(0)
            ogg_links = ogg.links(file, size) if file.read(4) == b"OggS" else []
            try:
                with _opened(file, whole) as sound:
                    kind = sound.format
            except soundfile.LibsndfileError as error:
                raise _Incomplete(f"not a sound file that libsndfile reads ({_cause(error)})") from None
            waveform = Waveform(name, max_seconds)
            try:
                for link in _links(file, size, kind, whole, ogg_links):
                    _read(file, link, waveform)
            except soundfile.LibsndfileError as error:  # also where one of several files cannot be opened
                raise DamagedError(f"truncated or broken ({_cause(error)})") from None
        except DamagedError as error:
            raise AudioError(f"{name}: {error}") from None
        except _Incomplete as error:
            waveform = Waveform(name, max_seconds)
            try:
                with ffmpeg.decode(file.fileno(), max_seconds) as (rate, channels, blocks):
                    waveform.begin(rate, channels)
                    for block in blocks:
                        waveform.add(block)
            except ffmpeg.FfmpegError as failure:
                raise AudioError(f"{name}: {error}, and {failure}") from None
    return check_samples(waveform.finish(), name)


def _links(file: BinaryIO, size: int, kind: str, whole: _Link, ogg_links: list[range]) -> Iterator[_Link]:
    """The files in a file of a format. Raises DamagedError."""
    if kind == "FLAC":
        for pieces, info in flac.links(file, size):
            yield _Link(pieces, info=info)
    elif len(ogg_links) > 1:
        yield from (_Link([piece]) for piece in ogg_links)
    elif kind == "MP3":
        yield from _mp3_links(file, whole)
    else:
        yield whole


def _mp3_links(file: BinaryIO, whole: _Link) -> Iterator[_Link]:
    links = mp3.find_links(file)
    if not any(link.frames for link in links) or (len(links) == 1 and links[0].is_counted):
        yield whole
        return
    for link in links:
        if not link.frames:
            raise DamagedError("truncated, one of several joined mp3 files has no frames of sound")
        samples = None if link.is_counted else link.samples  # of which decoders drop those of a frame or two
        yield _Link(link.pieces(), samples, dropped=4 * 1152)


@contextlib.contextmanager
def _opened(file: BinaryIO, link: _Link) -> Iterator[soundfile.SoundFile]:
    with contextlib.ExitStack() as stack:
        source = file if link.pieces is None else stack.enter_context(unnamed(file, link.pieces))
        source.seek(0)
        # By a path: without one, libsndfile takes a file "._" in the working folder for a part of this one.
        yield stack.enter_context(_Sound(f"/dev/fd/{source.fileno()}"))


def _read(file: BinaryIO, link: _Link, waveform: Waveform) -> None:
    """Adds the sound of a link.

    Raises:
      DamagedError: it ends before its end. _Incomplete: libsndfile does not get there.
      LibsndfileError: it is broken.
    """
    with _opened(file, link) as sound:
        exact = link.samples is None and sound.frames < 2**62  # a stream of unknown length says 2^63 − 1
        waveform.begin(sound.samplerate, sound.channels, sound.frames if exact else link.samples)
        checksum = flac.Checksum(link.info) if link.info and link.info.has_checksum else None
        left, count = sound.frames if exact else 2**62, 0
        dtype = "int32" if checksum else "float32"
        while left:  # a decoder asked for more may stumble over what lies behind the sound
            block = sound.read(min(left, max(1, BLOCK // sound.channels)), dtype=dtype, always_2d=True)
            if not len(block):
                break
            left, count = left - len(block), count + len(block)
            if checksum:
                checksum.add(block)
                block = block.astype(np.float32) * np.float32(2**-31)  # exact: no more than 24 bits are set
            waveform.add(block)
        if exact and count < sound.frames:
            raise DamagedError(f"truncated, {count} of {sound.frames} samples could be read")
        if link.samples is not None and link.samples - count > link.dropped:
            raise _Incomplete(f"libsndfile reads {count} of {link.samples} samples")
        if checksum:
            checksum.check()


def _cause(error: soundfile.LibsndfileError) -> str:
    if "possibly a pipe" in error.error_string:  # what it says of an mp3 without a frame that it can decode
        return "no frame that libsndfile can decode"
    return error.error_string.removeprefix("Error : ").strip().rstrip(".") or f"libsndfile error {error.code}"
