"""Long audio in pieces that the encoder's 1,500 positions hold."""

from __future__ import annotations

import numpy as np

from stepaudio_jax.audio import lengths


def chunk(samples: np.ndarray) -> list[np.ndarray]:
    """Cuts float32 [samples] at 16 kHz every 25 s, the released client's cut, without its empty extra chunk.

    A remainder too short for a token (0.020 s or less) stays with the chunk before it: nothing is dropped.
    """
    cuts = list(range(lengths.CHUNK_SAMPLES, len(samples), lengths.CHUNK_SAMPLES))
    if cuts and lengths.audio_tokens(len(samples) - cuts[-1]) < 1:
        cuts.pop()
    return np.split(samples, cuts)
