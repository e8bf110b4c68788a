"""Several chunks of sound in one row, one after another, each computed as if it were alone.

A row is counted in units of 80 ms: 1,280 samples, 8 mel frames, 4 frames after the strided convolution, 2 of the
encoder's rows, 1 of the adaptor's. A chunk begins with a unit and owns as many as hold its mel frames and two more, so
that behind its last value at every rate there is room for one zero, which is all that the convolutions, of width 3,
look across. In its last 200 samples before a chunk begins, a row holds the chunk's reflection, which its first mel
frames look at (mel.py); no frame of the chunk before reaches there.

Shapes: B rows, W samples, U = W // 1280 units, F = (W + 479) // 160 mel frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio import lengths

AnyArray = Array | np.ndarray

UNIT_FRAMES = 8
UNIT_SAMPLES = UNIT_FRAMES * lengths.HOP
REFLECTED = 200


class Layout(NamedTuple):
    """Of each mel frame of each row (a single row stands for all):

    Attributes:
      ids: the number of its chunk in the row, from 1; 0 where there is no sound.
      index: which of its chunk's frames it is.
      sizes: samples of its chunk.
    """

    ids: Int[Array, "B F"]
    index: Int[Array, "B F"]
    sizes: Int[Array, "B F"]


def units(samples: Any) -> Any:
    """Units that a chunk of so many samples owns: never more than its audio tokens and one."""
    return -(-(lengths.mel_frames(samples) + 2) // UNIT_FRAMES)


def put(
    row: Float[np.ndarray, " W"],
    sizes: Int[np.ndarray, " U"],
    offsets: Int[np.ndarray, " U"],
    start: int,
    chunk: Float[np.ndarray, " N"],
) -> None:
    """Writes a chunk into a row from unit `start` on, and what `frame_layout` needs to know of it."""
    first, own = start * UNIT_SAMPLES, slice(start, start + units(len(chunk)))
    row[first : first + len(chunk)] = chunk
    if start:
        row[first - REFLECTED : first] = chunk[REFLECTED:0:-1]
    sizes[own] = len(chunk)
    offsets[own] = np.arange(own.stop - own.start)


def frame_layout(frames: int, sizes: Int[AnyArray, "B ..."], offsets: Int[AnyArray, "B U"] | None = None) -> Layout:
    """Where the chunks lie among the mel frames of rows.

    Args:
      sizes: samples of the chunk that each unit belongs to, 0 for none; without offsets [B], of each row's only chunk.
      offsets: each unit's number within its chunk.
    """
    sizes = jnp.asarray(sizes)
    if offsets is None:
        index, sizes = jnp.arange(frames)[None], sizes[:, None]
        return Layout((index < lengths.mel_frames(sizes)).astype(jnp.int32), index, sizes)

    def of_frames(x):
        return jnp.pad(jnp.repeat(x, UNIT_FRAMES, axis=1), [(0, 0), (0, frames - x.shape[1] * UNIT_FRAMES)])

    numbers = jnp.cumsum((sizes > 0) & (offsets == 0), axis=1, dtype=jnp.int32)
    numbers, sizes, offsets = map(of_frames, (numbers, sizes, jnp.asarray(offsets)))
    index = offsets * UNIT_FRAMES + jnp.arange(frames) % UNIT_FRAMES
    own = (sizes > 0) & (index < lengths.mel_frames(sizes))
    return Layout(jnp.where(own, numbers, 0), index, sizes)
