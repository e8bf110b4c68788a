"""Log-mel features, exactly as the release computes them (MODEL.md §3), batched over chunks of any length.

Shapes: B chunks, W samples of the bucket, F = (W + 479) // 160 frames, 128 mel bands.

A chunk's frames never look past the 479 zeros behind it: the last kept frame ends 40 samples into the reflected
tail, which mirrors zeros. So a chunk in a longer bucket is the chunk alone followed by zeros.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio import lengths

N_FFT = 400
N_MELS = 128


def log_mel(samples: Float[Array, "B W"], sizes: Int[Array, " B"]) -> Float[Array, "B F 128"]:
    """Log-mel of each chunk; frames from a chunk's own T on are zero.

    Args:
      samples: 16 kHz, within ±1; what lies beyond a chunk's size is ignored.
      sizes: samples of each chunk.
    """
    batch, width = samples.shape
    frames = lengths.mel_frames(width)
    samples = jnp.where(jnp.arange(width) < sizes[:, None], samples, 0).astype(jnp.float32)
    half, step = N_FFT // 2, lengths.HOP // 2
    lead = jnp.pad(samples, ((0, 0), (0, max(0, half + 1 - width))))[:, half:0:-1]
    blocks = 2 * frames + 3  # of 80 samples: a frame is five of them, the next one starts two later
    signal = jnp.concatenate([lead, samples], axis=1)
    signal = jnp.pad(signal, ((0, 0), (0, max(0, blocks * step - signal.shape[1]))))[:, : blocks * step]
    signal = signal.reshape(batch, blocks, step)
    framed = jnp.concatenate([signal[:, i : i + 2 * frames - 1 : 2] for i in range(5)], axis=-1)

    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    spectrum = dot(framed, jnp.asarray(_fourier()))
    power = jnp.square(spectrum[..., : half + 1]) + jnp.square(spectrum[..., half + 1 :])
    logs = jnp.log10(jnp.maximum(dot(power, jnp.asarray(mel_filters().T, jnp.float32)), 1e-10))
    own = (jnp.arange(frames) < lengths.mel_frames(sizes)[:, None])[..., None]
    loudest = jnp.max(jnp.where(own, logs, -10.0), axis=(1, 2), keepdims=True)
    return jnp.where(own, (jnp.maximum(logs, loudest - 8.0) + 4.0) / 4.0, 0.0)


@functools.cache
def _fourier() -> np.ndarray:
    """Windowed Fourier matrix [400, 402]: cosines, then sines, of the 201 non-negative frequencies."""
    time = np.arange(N_FFT)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / N_FFT)
    angle = 2 * np.pi * (time[:, None] * np.arange(N_FFT // 2 + 1) % N_FFT) / N_FFT
    return (window[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


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
    bins = np.linspace(0, lengths.SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
