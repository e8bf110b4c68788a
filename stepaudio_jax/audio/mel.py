"""Log-mel features, exactly as the release computes them (MODEL.md §3), batched over chunks of any length.

Shapes: B chunks, W samples of the bucket, F = (W + 479) // 160 frames, of which a chunk's own T come first, 128 bands.

A row holds one chunk, or several (rows.py). A chunk's frames look at most 40 samples past the 479 zeros behind it, into
a reflection of those zeros. So a chunk in a longer row is the chunk alone with more zeros behind it, and only its left
edge is ever reflected: here for the first chunk of a row, by rows.py for the others.

Two ways to the power spectrum, both closer to float64 than torch's own float32. A CPU transforms frames by FFT, chunk
after chunk, so that a chunk's frames never leave its caches. An accelerator multiplies with the Fourier matrix, all
chunks at once: its matrix units are idle here, and a product, unlike an FFT, follows its batch's sharding.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio import lengths, rows

N_FFT = 400
N_BINS = N_FFT // 2 + 1
N_MELS = 128
HOP = lengths.HOP


def log_mel(
    samples: Float[Array, "B W"], sizes: Int[Array, "B ..."], offsets: Int[rows.AnyArray, "B U"] | None = None
) -> Float[Array, "B F 128"]:
    """Log-mel of each chunk, in float32; frames that belong to no chunk are exactly zero.

    On a CPU a chunk's features are the same to the bit alone and in any batch of one bucket.

    Args:
      samples: 16 kHz, within ±1; what lies beyond a chunk's size is ignored.
      sizes: samples of each chunk, or with `offsets`, where a row holds several, those of each unit (rows.py).
    """
    ids = rows.frame_layout(lengths.mel_frames(samples.shape[1]), sizes, offsets).ids
    last = sizes if offsets is None else jnp.full(samples.shape[0], samples.shape[1])
    return jax.lax.platform_dependent(samples, last, ids, cpu=_one_after_another, default=_all_at_once)


def _one_after_another(samples, last, ids):
    def features(row):
        samples, last, ids = row
        return _features(fft_power(_frames_gathered(samples, last)), ids)

    return jax.lax.map(features, (samples, last, ids))


def _all_at_once(samples, last, ids):
    def features(samples, last, ids):
        return _features(matmul_power(_frames_sliced(samples, last)), ids)

    return jax.vmap(features)(samples, last, ids)


def _features(power: Float[Array, "F 201"], ids: Int[Array, " F"]) -> Float[Array, "F 128"]:
    """Band energies, at most 80 dB below the chunk's loudest, as (log10 + 4) / 4."""
    mel = jnp.matmul(power, jnp.asarray(mel_filters().T, jnp.float32), precision=jax.lax.Precision.HIGHEST)
    loudest = jax.ops.segment_max(mel.max(axis=1), ids, num_segments=len(ids) // rows.UNIT_FRAMES + 2)[ids]
    logs = jnp.log10(jnp.maximum(mel, jnp.maximum(1e-10, 1e-8 * loudest[:, None])))
    return jnp.where((ids > 0)[:, None], logs / 4 + 1, 0.0)


def _frames_gathered(samples: Float[Array, " W"], size: Int[Array, ""]) -> Float[Array, "F 400"]:
    """Overlapping frames, each centred on a multiple of 160 samples, the first ones reflected at the left edge."""
    starts = jnp.arange(lengths.mel_frames(samples.shape[0]))[:, None] * HOP - N_FFT // 2
    at = jnp.abs(starts + jnp.arange(N_FFT))
    return jnp.where(at < size, samples.at[at].get(mode="clip"), 0).astype(jnp.float32)


def _frames_sliced(samples: Float[Array, " W"], size: Int[Array, ""]) -> Float[Array, "F 400"]:
    """The same by slices, for accelerators, which gather element by element."""
    samples = jnp.where(jnp.arange(samples.shape[0]) < size, samples, 0).astype(jnp.float32)
    half = N_FFT // 2
    count = lengths.mel_frames(samples.shape[0])
    rows = count + 2  # of one hop: a frame is two and a half of them, the next one starts one later
    short = max(0, half + 1 - samples.shape[0])
    lead = jnp.pad(samples, (0, short))[half:0:-1]
    signal = jnp.concatenate([lead, samples])
    signal = jnp.pad(signal, (0, max(0, rows * HOP - signal.shape[0])))[: rows * HOP].reshape(rows, HOP)
    return jnp.concatenate([signal[:count], signal[1 : count + 1], signal[2:, : N_FFT - 2 * HOP]], axis=1)


def fft_power(frames: Float[Array, "F 400"]) -> Float[Array, "F 201"]:
    """Power spectrum of windowed frames, by FFT."""
    spectrum = jnp.fft.rfft(frames * jnp.asarray(_window(), jnp.float32))
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def matmul_power(frames: Float[Array, "F 400"]) -> Float[Array, "F 201"]:
    """The same by one product with the windowed Fourier matrix; bfloat16 passes would lose the quiet bins."""
    spectrum = jnp.matmul(frames, jnp.asarray(_fourier(), jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return jnp.square(spectrum[..., :N_BINS]) + jnp.square(spectrum[..., N_BINS:])


def _window() -> np.ndarray:
    """The periodic Hann window: float64 [400]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)


@functools.cache
def _fourier() -> np.ndarray:
    """The window times cosines, then sines, of the 201 non-negative frequencies: float64 [400, 402]."""
    turns = np.arange(N_FFT)[:, None] * np.arange(N_BINS) % N_FFT / N_FFT  # whole turns taken off, exactly
    waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)
    return _window()[:, None] * waves


@functools.cache
def mel_filters() -> np.ndarray:
    """The 128 Slaney-scale, Slaney-normalised triangles over 0 to 8 kHz: float64 [128, 201].

    Slaney, Auditory Toolbox (1998): linear below 1 kHz at 200/3 Hz a mel, logarithmic above, 27 mels to 6.4 kHz.
    """
    top_linear = 1000 * 3 / 200
    log_step = np.log(6.4) / 27

    def to_hz(mel):
        return np.where(mel < top_linear, mel * 200 / 3, 1000 * np.exp(log_step * (mel - top_linear)))

    top = top_linear + np.log(8000 / 1000) / log_step
    edges = to_hz(np.linspace(0, top, N_MELS + 2))
    bins = np.linspace(0, lengths.SAMPLE_RATE / 2, N_BINS)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
