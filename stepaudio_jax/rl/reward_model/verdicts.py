"""What a generative reward model concludes: one of five levels, in its last line and nowhere else.

A reply that is judged may say anything. Before the judge sees it, its think block goes, and whatever could be taken
for a verdict or for the end of a reply is spelled so that it cannot (`shown`): even a judge that is cut off in the
middle of quoting it has given no verdict.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Level = Literal["much worse", "worse", "equal", "better", "much better"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""How the first reply stands to the second, from the lowest (R1.5 §3.3: an ordinal scale relative to a reference)."""

VALUES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""φ of the levels (RECIPE §3)."""

SLOT = "Verdict:"

MOST = 20_000
"""Characters of a reply that a judge is shown."""

_MARKS = r"[ \t*_`]*"
"""Emphasis around a verdict or its word. None may stand within the word itself: `shown` would not see such a word."""

_SLOT = rf"(?:[>\-]|#{{1,6}})?{_MARKS}{SLOT[:-1]}{_MARKS}[:：]{_MARKS}"
_END = rf"{_MARKS}[.!。！]?{_MARKS}"
_WORD = "(?:yes|no)"
_POINTS = re.compile(rf"{_SLOT}({_WORD}(?:[ \t]*[,，][ \t]*{_WORD})*){_END}", re.ASCII | re.IGNORECASE)
_LAST_LINE = re.compile(rf"{_SLOT}({'|'.join(LEVELS)}){_END}", re.ASCII | re.IGNORECASE)


def read_level(text: str) -> Level | None:
    """The level in the last line that is not blank, whatever its case or emphasis; None where that line is anything
    but a verdict."""
    found = _LAST_LINE.fullmatch(_last_line(text))
    return next((level for level in LEVELS if found and level == found[1].lower()), None)


def read_points(text: str, count: int) -> tuple[bool, ...] | None:
    """Which of so many points are met, by the last line that is not blank; None where it does not say so of each."""
    found = _POINTS.fullmatch(_last_line(text))
    said = tuple(word == "yes" for word in re.findall(_WORD, found[1].lower())) if found else ()
    return said if len(said) == count else None


def _last_line(text: str) -> str:
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines[-1].rstrip(" \t\r") if lines else ""


def value(level: Level, values: tuple[float, ...] = VALUES) -> float:
    """φ."""
    return values[LEVELS.index(level)]


def without_think(text: str) -> str:
    """What stands outside think blocks; of one that nothing closes, nothing."""
    while (start := text.find("<think>")) >= 0:
        stop = text.find("</think>", start)
        text = text[:start] + (text[stop + len("</think>") :] if stop >= 0 else "")
    return text.rpartition("</think>")[2]


def shown(text: str, most: int = MOST) -> str:
    """A reply, or anything else that people or models wrote, as a judge is shown it: tags and the word verdict spelled
    differently, and of what is longer than `most` characters the beginning and the end."""
    text = without_think(text)
    if len(text) > most:
        half, cut = most // 2, len(text) - most // 2 * 2
        text = f"{text[:half]}\n[{cut:,} characters left out]\n{text[-half:]}"
    text = re.sub(r"verdict", lambda found: "-".join(found[0]), text, flags=re.IGNORECASE)
    return text.replace("<", "‹").replace(">", "›").strip()
