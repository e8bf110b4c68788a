"""Signs that a policy pleases its judge instead of people: found in every rollout, taken off the reward if asked for.

length       the answer is much longer than the reply it is compared with
repetition   a large part of it are words that it has said before
verdict      it speaks to the judge: a verdict's words or tags
language     its letters are of another script than the person's words
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.rl.reward_model.verdicts import LEVELS
from stepaudio_jax.rl.rollout import Prompt, Sampled

TIMES, BESIDES = 3, 200
"""An answer is long that has more characters than so many times the reference's, and so many besides."""

GRAM, REPEATED = 4, 0.5
"""An answer repeats itself if such a part of its runs of so many words have come before (of so many characters, in
scripts without spaces)."""

OTHER_SCRIPT = 0.5
"""Part of an answer's letters that are of scripts the person has not used, from which it has switched."""

LEAST = 8
"""Letters, or runs of words, below which a text is too short to tell."""

_VERDICT = re.compile(
    rf"verdict\s*:|</?\s*(?:reply|dialogue|rubric)\b|repl(?:y|ies) [12]\b.{{0,40}}\b(?:{'|'.join(LEVELS)})\b",
    re.IGNORECASE | re.DOTALL,
)


def length(prompt: Prompt, answer: str) -> bool:
    """Only where the prompt has a reply to compare with."""
    return isinstance(prompt.truth, str) and len(answer) > TIMES * len(prompt.truth) + BESIDES


def repetition(prompt: Prompt, answer: str) -> bool:
    words: Sequence[str] = answer.lower().split()
    if len(words) < len(answer) / 20:  # a script without spaces
        words = answer
    grams = Counter(tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1))
    whole = grams.total()
    return whole >= LEAST and (whole - len(grams)) / whole >= REPEATED


def verdict(prompt: Prompt, answer: str) -> bool:
    return bool(_VERDICT.search(answer))


def language(prompt: Prompt, answer: str) -> bool:
    asked = next((t.text for t in reversed(prompt.conversation.turns) if t.role == "human" and t.text.strip()), "")
    own, theirs = Counter(map(_script, _letters(answer))), set(map(_script, _letters(asked)))
    whole = own.total()
    strange = sum(count for script, count in own.items() if script not in theirs)
    return bool(theirs) and whole >= LEAST and strange / whole > OTHER_SCRIPT


GUARDS = {"length": length, "repetition": repetition, "verdict": verdict, "language": language}


def signs(prompts: Sequence[Prompt], sampled: Sequence[Sampled]) -> dict[str, np.ndarray]:
    """By guard, which replies show its sign: bool [N]. Looked at is what stands outside the think block."""
    pairs = list(zip(prompts, (each.answer for each in sampled), strict=True))
    return {name: np.array([guard(*pair) for pair in pairs], bool) for name, guard in GUARDS.items()}


def _letters(text: str) -> list[str]:
    return [letter for letter in text if letter.isalpha()]


def _script(letter: str) -> str:
    """By the first word of its name in Unicode, which is close enough: LATIN, CYRILLIC, CJK, HIRAGANA. Those that
    Japanese mixes are one."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "FULLWIDTH") else name
