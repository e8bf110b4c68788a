"""Does a reasoning trace listen? R1 §4.2 keeps those that name acoustic evidence, are coherent, and are right.

Rules look for words: of sound heard, and of sound replaced by a text about it ("the caption says"), R1's textual
surrogate reasoning. A judge, where there is one, says whether what is named was there, and whether the answer follows.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Sequence
from typing import Protocol

from stepaudio_jax import miniature
from stepaudio_jax.rl.rollout import Prompt, Sampled

EVIDENCE = (
    r"\b(i|we|you) (can )?hear\b", r"\bsounds? (like|of|as|softer|louder)\b", r"\bpitch", r"\btones?\b", r"\btimbre",
    r"\btempo\b", r"\brhythm", r"\bloud", r"\bsoft(er|ly)?\b", r"\bquiet", r"\bvolume\b", r"\bintonation",
    r"\baccent", r"\bpauses?\b", r"\bbreath", r"\bbackground (noise|music|sound)", r"\bnoise\b", r"\becho",
    r"\bmelod", r"\bchord", r"\bvoices?\b", r"\bspeech rate\b", r"\bspeak(s|ing)? (fast|slow|rapidly)", r"\brising\b",
    r"\bfalling\b", r"\bHz\b", r"\bfrequenc", r"\btrembl", r"\bwhisper", r"\bshout", r"\blaugh", r"\bsobb?ing",
)  # fmt: skip
"""Words for what is heard: at least one of these is wanted."""

SURROGATE = (
    r"\b(caption|transcript(ion)?|lyrics|subtitles?|description|text|metadata)\b[^.\n]{0,40}"
    r"\b(says?|said|states?|mentions?|reads?|tells?|indicates?|describes?|suggests?|shows?)\b",
    r"\baccording to the (caption|transcript(ion)?|lyrics|subtitles?|description|text|metadata)\b",
    r"\b(based on|from) the (caption|transcript(ion)?|lyrics|subtitles?|text description|metadata)\b",
)
"""Reasoning from a text about the sound in the sound's place: none of these is wanted."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Regular expressions, of which case does not matter."""

    evidence: Sequence[str] = EVIDENCE
    surrogate: Sequence[str] = SURROGATE

    def names_evidence(self, think: str) -> bool:
        return any(re.search(each, think, re.IGNORECASE) for each in self.evidence)

    def is_surrogate(self, think: str) -> bool:
        return any(re.search(each, think, re.IGNORECASE) for each in self.surrogate)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says of a reply; None where it could not be read.

    Attributes:
      grounded: what the reasoning says it heard was there to be heard.
      coherent: the answer follows from it.
    """

    grounded: bool | None
    coherent: bool | None


class Judge(Protocol):
    def __call__(self, prompts: Sequence[Prompt], sampled: Sequence[Sampled]) -> Sequence[Verdict]:
        """Of each reply, with its prompt."""
        ...


class SmallWorldJudge:
    """Knows the scene: grounded is a trace that lists at least this share of its events by kind and place and no more,
    coherent one from whose last line the answer follows."""

    def __init__(self, share: float = 0.5):
        self._share = share

    def __call__(self, prompts: Sequence[Prompt], sampled: Sequence[Sampled]) -> list[Verdict]:
        return [self._one(prompt, each) for prompt, each in zip(prompts, sampled, strict=True)]

    def _one(self, prompt: Prompt, sampled: Sampled) -> Verdict:
        scene = prompt.extra["scene"]
        heard = miniature.score_events(sampled.think, scene)
        grounded = heard.total > 0 and heard.kinds >= self._share * heard.total
        return Verdict(grounded, miniature.follows(sampled.think, sampled.answer))


def no_judge(prompts: Sequence[Prompt], sampled: Sequence[Sampled]) -> list[Verdict]:
    """For rules alone."""
    return [Verdict(True, True) for _ in sampled]


def judge_of(name: str) -> Judge:
    """ "small world", "none", or "package.module:function".

    Raises:
      ValueError: there is no such judge.
    """
    if name in (known := {"small world": SmallWorldJudge(), "none": no_judge}):
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f'judge: expected "small world", "none" or "package.module:function", found "{name}"')
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'judge: "{name}" cannot be imported: {error}') from error
