"""How right a reply is: its answer, and each event that its reasoning says it heard."""

from __future__ import annotations

import re
from typing import NamedTuple

from stepaudio_jax.miniature.scenes import KINDS, Scene

_TWO = re.compile(r"First: \d+ (\w+)\. Second: \d+ (\w+)\.$")
_ENTRY = re.compile(r"^\d+ +(.+?)[ .,]*$", re.MULTILINE)


class EventScore(NamedTuple):
    """Events of a reply against the scene's, place by place.

    Attributes:
      total: places, the longer of the two lists: a missing event counts as wrong, and so does an invented one.
      kinds: places whose kind is right.
      details: places whose whole description is right.
    """

    total: int
    kinds: int
    details: int


def normalise(answer: str) -> str:
    """Lower case, single spaces, without a final period or a leading "the"."""
    words = answer.lower().strip().rstrip(".").split()
    return " ".join(words[1:] if words[:1] == ["the"] else words)


def is_correct(answer: str, truth: str) -> bool:
    return normalise(answer) == normalise(truth)


def follows(think: str, answer: str) -> bool:
    """Does the answer follow from the last line of a reasoning trace: is it what the line ends with, or what its
    comparison comes to?"""
    last = think.strip().rpartition("\n")[2]
    if two := _TWO.search(last):
        first, second = two.groups()
        if {first, second} == {"slow", "fast"}:
            return is_correct(answer, "faster" if second == "fast" else "slower")
        return is_correct(answer, "the first" if first in ("loud", "high") else "the second") and first != second
    return bool(answer.strip()) and f" {last}".lower().rstrip(". ").endswith(f" {normalise(answer)}")


def parse_events(think: str) -> list[str]:
    """The descriptions of a reasoning trace's numbered lines after "I hear:", in order; none if it has no list."""
    return [match.group(1) for match in _ENTRY.finditer(think.partition("I hear:")[2])]


def score_events(think: str, scene: Scene) -> EventScore:
    heard, true = parse_events(think), scene.events
    pairs = list(zip(heard, true, strict=False))
    return EventScore(
        total=max(len(heard), len(true)),
        kinds=sum(_kind(said) == event.kind for said, event in pairs),
        details=sum(said == event.description for said, event in pairs),
    )


def _kind(description: str) -> str:
    # The space keeps "baritone" from counting as a tone.
    return next((kind for kind in KINDS if f" {description}".endswith(f" {kind}")), "")
