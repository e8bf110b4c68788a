"""Where long sound is cut into windows that overlap: together they hold every sample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from stepaudio_jax.audio import SAMPLE_RATE

PAUSE = SAMPLE_RATE // 5
"""Samples of a quiet place: 0.2 s."""
QUIET = 0.1
"""Its power is at most this share of the overlap's mean power."""


def cut(samples: Float[np.ndarray, " N"], longest: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of windows, in samples, as few as there can be and about equally long.

    A window begins in the first and ends in the last quarter of what it shares with a neighbour, each in a quiet place
    if there is one; neighbours therefore share between half of the overlap and all of it.

    Args:
      longest: most samples of a window.
      overlap: samples that neighbours share; at most half of a window.
    """
    total = len(samples)
    if total <= longest:
        return [(0, total)]
    count = -(-(total - overlap) // (longest - overlap))
    width = -(-(total + (count - 1) * overlap) // count)
    starts = [number * (total - width) // (count - 1) for number in range(count)]
    stops = [start + width for start in starts]
    for number in range(count - 1):
        begin, end = starts[number + 1], stops[number]
        quarter, power = (end - begin) // 4, mean_power(samples[begin:end])
        starts[number + 1] = begin + quiet_place(samples[begin : begin + quarter], power, otherwise=0)
        stops[number] = end - quarter + quiet_place(samples[end - quarter : end], power, otherwise=quarter)
    return list(zip(starts, stops, strict=True))


def mean_power(samples: Float[np.ndarray, " N"]) -> float:
    return float(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0


def quiet_place(samples: Float[np.ndarray, " N"], power: float, *, otherwise: int) -> int:
    """The middle of the quietest 0.2 s, where that is quiet beside this mean power; else `otherwise`."""
    if len(samples) <= PAUSE:
        return otherwise
    sums = np.concatenate([[0], np.cumsum(np.square(samples, dtype=np.float64))])
    powers = (sums[PAUSE:] - sums[:-PAUSE]) / PAUSE
    place = int(powers.argmin())
    return place + PAUSE // 2 if powers[place] <= QUIET * power else otherwise
