"""The draws that makers of questions share."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

T = TypeVar("T")


def known(kind: str, kinds: tuple[str, ...]) -> str:
    if kind not in kinds:
        raise ValueError(f"kind of question: {kind!r}, expected one of {', '.join(kinds)}")
    return kind


def weave(rng: np.random.Generator, ordered: list[T], others: list[T]) -> list[T]:
    """The others put among the ordered ones at random, these keeping their order."""
    places = set(rng.permutation(len(ordered) + len(others))[: len(ordered)].tolist())
    take, rest = iter(ordered), iter(others)
    return [next(take) if i in places else next(rest) for i in range(len(ordered) + len(others))]


def shuffle(rng: np.random.Generator, items: list) -> list:
    return [items[i] for i in rng.permutation(len(items))]


def pick(rng: np.random.Generator, options) -> str:
    options = tuple(options)
    return options[int(rng.integers(len(options)))]


def say(rng: np.random.Generator, *wordings: str) -> str:
    return pick(rng, wordings)
