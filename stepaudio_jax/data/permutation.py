"""A seeded permutation of 0…n-1 that is computed place by place, so that no list of n need be held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt64

ROUNDS = 8
Row = TypeVar("Row")


def permute(places: UInt64[np.ndarray, " P"], n: int, seed: Sequence[int]) -> UInt64[np.ndarray, " P"]:
    """What stands at these places (each below n) of the permutation of 0…n-1 that the seed names.

    A Feistel network over the least power of four that holds n (Luby and Rackoff 1988), walked again from each number
    that falls outside (cycle walking, Black and Rogaway 2002): a bijection whatever the round function is.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    found = _feistel(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(found >= n)):
        found[outside] = _feistel(found[outside], half, keys)
    return found


def shuffle(rows: list[Row], seed: Sequence[int]) -> list[Row]:
    """A list in the order that the seed names, the same with every version of numpy."""
    return [rows[i] for i in permute(np.arange(len(rows), dtype=np.uint64), len(rows), seed)]


def _feistel(numbers: UInt64[np.ndarray, " P"], half: np.uint64, keys: UInt64[np.ndarray, " R"]) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return left << half | right


def _mix(numbers: UInt64[np.ndarray, " P"]) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), modulo 2^64."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
