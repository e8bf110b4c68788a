"""Blocks of sound to what the model hears: the first channel, float32, 16 kHz, checked, in memory of that size only."""

from __future__ import annotations

import numpy as np
import soxr
from jaxtyping import Float

from stepaudio_jax.audio import lengths
from stepaudio_jax.audio.errors import AudioError, AudioTooLong, warn

RATES = (1_000, 1_000_000)
"""Sample rates believed, in Hz: a header that lies about them would blow a small file up a thousandfold."""

VALUES_PER_SECOND = 768_000
"""Of all channels, for as long as sound may be: 8 of them at 96 kHz. What has more may last accordingly less, or a few
megabytes of FLAC, 8 channels at 655 kHz, would take minutes to decode."""

PEAK = 10.0
"""Full scale is 1. A mix, or a lossy coder, may go beyond it, but hardly by 20 dB: that is another scale."""

SILENCE = 1e-3
"""−60 dB of full scale: a first channel whose RMS is below is silent where another is ten times louder."""

FAINTEST = 1e-4
"""−80 dB: another channel is not silent from here on. Dither of 16 bits lies at −98 dB."""


class Waveform:
    """Gathers the sound of a file block by block, and resamples it on the way.

    What is kept grows with the seconds of sound, not with their samples: an hour at 655 kHz takes no more than one at
    16 kHz. A file of several that were joined has parts, each with a rate of its own.
    """

    def __init__(self, name: str, max_seconds: float | None = None):
        """`name` is what errors call the sound."""
        self._name, self._max_seconds = name, max_seconds
        self._part: _Part | None = None
        self._seconds = 0.0  # of the parts before this one
        self._blocks: list[np.ndarray] = []
        self._peak, self._bad, self._first_bad = 0.0, 0, 0.0

    def begin(self, rate: int, channels: int = 1, promised: int | None = None) -> None:
        """A part at `rate` Hz, of which a header promises so many samples of each channel.

        Raises:
          AudioTooLong: it promises too many. AudioError: a rate that is not believed.
        """
        self._end_part()
        if not RATES[0] <= rate <= RATES[1]:
            raise AudioError(f"{self._name}: a sample rate of {rate} Hz, expected {RATES[0]} to {RATES[1]}")
        self._part = _Part(rate, channels)
        if promised is not None and self._is_too_long(promised):
            seconds = self._seconds + promised / rate
            raise AudioTooLong(f"{self._name}: {seconds:.1f} s of sound, more than the {self._allowed()}")

    def add(self, block: Float[np.ndarray, "samples channels"]) -> None:
        """The next samples, float32. Raises AudioTooLong."""
        part = self._part
        assert part is not None, "begin() comes first"
        first = np.ascontiguousarray(block[:, 0])
        finite = np.isfinite(first)
        if not finite.all():
            if not self._bad:
                self._first_bad = self._seconds + (part.frames + int(np.argmin(finite))) / part.rate
            self._bad += int((~finite).sum())
        if self._is_too_long(part.frames + len(block)):
            raise AudioTooLong(f"{self._name}: more than the {self._allowed()}")
        part.measure(block)
        if not self._bad and len(first):  # a resampler would smear a bad sample over its neighbours
            self._peak = max(self._peak, float(first.max()), -float(first.min()))
            self._blocks.append(part.resample(first))

    def finish(self) -> Float[np.ndarray, " samples"]:
        """The sound, float32 at 16 kHz; warns where the first channel is silent and another is not.

        Raises:
          AudioError: samples that are not finite, or far beyond ±1.
        """
        self._end_part()
        if self._bad:
            raise AudioError(not_finite(self._name, self._bad, self._first_bad))
        if self._peak > PEAK:
            raise AudioError(beyond_full_scale(self._name, self._peak))
        samples = np.empty(sum(map(len, self._blocks)), np.float32)
        end = len(samples)
        while self._blocks:  # each is freed once it is copied
            block = self._blocks.pop()
            samples[end - len(block) : end] = block
            end -= len(block)
        return samples

    def _is_too_long(self, frames: int) -> bool:
        part = self._part
        if part is None or self._max_seconds is None:
            return False
        return frames > (self._max_seconds - self._seconds) * part.rate * part.share_of_limit

    def _allowed(self) -> str:
        part, most = self._part, self._max_seconds
        assert part is not None and most is not None
        if part.share_of_limit == 1:
            return f"{most:g} s allowed"
        return f"{most * part.share_of_limit:.1f} s allowed of {part.channels} channels at {part.rate} Hz"

    def _end_part(self) -> None:
        if (part := self._part) is None:
            return
        self._seconds += part.frames / part.rate
        if part.frames and not self._bad:
            self._blocks.append(part.flush())
        if (louder := part.louder_than_first()) is not None:
            warn(
                f"{self._name}: the first channel is silent while channel {louder} of {part.channels} is not; only the "
                "first is heard: send the channel that is meant as a file of its own"
            )
        self._part = None


class _Part:
    """Attributes:
    frames: samples of a channel so far.
    share_of_limit: how much of the longest sound allowed it may last.
    """

    def __init__(self, rate: int, channels: int):
        self.rate, self.frames, self.channels = rate, 0, channels
        self.share_of_limit = min(1.0, VALUES_PER_SECOND / (rate * channels))
        self._sums = np.zeros((2, channels))  # of the samples of each channel, and of their squares
        self._resampler = None
        if rate != lengths.SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, lengths.SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def resample(self, first: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " resampled"]:
        return first if self._resampler is None else self._resampler.resample_chunk(first)

    def flush(self) -> Float[np.ndarray, " resampled"]:
        none = np.zeros(0, np.float32)
        return none if self._resampler is None else self._resampler.resample_chunk(none, last=True)

    def measure(self, block: Float[np.ndarray, "samples channels"]) -> None:
        self.frames += len(block)
        if self.channels > 1:
            squares = np.einsum("ij,ij->j", block, block, dtype=np.float64)
            self._sums = self._sums + np.stack([block.sum(0, dtype=np.float64), squares])

    def louder_than_first(self) -> int | None:
        """The loudest channel, counted from 1, where the first is silent and this one is not."""
        if self.channels == 1 or not self.frames:
            return None
        with np.errstate(invalid="ignore"):  # other channels may hold what is not finite
            mean, square = self._sums / self.frames
            rms = np.sqrt(np.maximum(square - mean**2, 0))  # an offset cannot be heard
            loud = (rms > FAINTEST) & (rms > 10 * rms[0])
        return int(np.argmax(np.where(loud, rms, 0))) + 1 if rms[0] < SILENCE and loud.any() else None


def not_finite(name: str, count: int, seconds: float) -> str:
    return f"{name}: {count} samples are not finite numbers, the first at {seconds:.3f} s"


def beyond_full_scale(name: str, peak: float) -> str:
    """The refusal of samples far beyond ±1, with the scale that they are probably in."""
    bits = next((bits for bits in (8, 16, 24, 32) if peak <= 1 << bits - 1), None)
    likely = "" if bits is None else f"; they look like {bits}-bit integers: divide them by {1 << bits - 1}"
    return f"{name}: its samples reach a peak of {peak:.6g}, expected floats within ±1{likely}"
