"""Long audio in pieces that the encoder's 1,500 positions hold, and pieces in arrays of few different shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from stepaudio_jax.audio import lengths

LONGEST_CUT = lengths.CHUNK_SAMPLES + lengths.MIN_SAMPLES - 1
"""The most samples of a chunk that `chunk` cuts: 25 s and a remainder too short for a token."""

BUCKETS = (*(seconds * lengths.SAMPLE_RATE for seconds in (1, 2, 5, 10, 15)), LONGEST_CUT, 30 * lengths.SAMPLE_RATE)
"""Widths of stacked chunks, in samples; the last one holds every chunk there may be."""


def chunk(samples: Float[np.ndarray, " N"]) -> list[np.ndarray]:
    """Cuts sound at 16 kHz every 25 s, the released client's cut, without its empty extra chunk.

    A remainder too short for a token (0.020 s or less) stays with the chunk before it, which then lasts up to
    25.02 s: nothing is dropped.
    """
    cuts = list(range(lengths.CHUNK_SAMPLES, len(samples), lengths.CHUNK_SAMPLES))
    if cuts and lengths.audio_tokens(len(samples) - cuts[-1]) < 1:
        cuts.pop()
    return np.split(samples, cuts)


def stack(
    chunks: Sequence[Float[np.ndarray, " _"]], buckets: Sequence[int] = BUCKETS
) -> tuple[Float[np.ndarray, "B W"], Int[np.ndarray, " B"]]:
    """Chunks side by side, zeros behind each, and their sizes: what `log_mel` takes.

    Args:
      buckets: widths W to choose from, in samples and ascending; the smallest that holds the longest chunk is taken.

    Raises:
      ValueError: a chunk longer than every bucket.
    """
    sizes = np.array([len(piece) for piece in chunks], np.int32)
    longest = int(sizes.max(initial=0))
    width = next((width for width in buckets if longest <= width), None)
    if width is None:
        raise ValueError(
            f"chunks: {longest / lengths.SAMPLE_RATE:.2f} s, more than the largest bucket of "
            f"{buckets[-1] / lengths.SAMPLE_RATE:.2f} s: cut the sound with `chunk` first"
        )
    samples = np.zeros((len(chunks), width), np.float32)
    for row, piece in zip(samples, chunks, strict=True):
        row[: len(piece)] = piece
    return samples, sizes
