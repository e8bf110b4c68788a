"""Joining texts of neighbouring windows of sound: what both heard in their overlap is said once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

SHORTEST_RUN = 4
"""Words that two texts must have in common in a row, to be taken for the same speech."""
ALIKE = 0.6
"""And so much of their ends must agree when one is laid over the other there."""

# Chinese, Japanese and Korean characters stand for themselves: those scripts put no spaces between words.
_WORD = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")


class Word(NamedTuple):
    """What is compared, and where it begins in the text."""

    key: str
    start: int


def words(text: str) -> list[Word]:
    """Words without case and punctuation; what is nothing else is none."""
    found = ((re.sub(r"\W", "", match.group()).casefold(), match.start()) for match in _WORD.finditer(text))
    return [Word(key, start) for key, start in found if key]


def join(texts: Sequence[str], near: int) -> str:
    """One text after another, `near` being the most words that an overlap repeats."""
    if not near:
        return "\n".join(texts)
    whole = ""
    for text in map(str.strip, texts):
        whole = _join_two(whole, text, near) if whole and text else whole or text
    return whole


def _join_two(left: str, right: str, near: int) -> str:
    """The left text up to the longest run of words that its end has in common with the right one's beginning, then the
    right text from there. Without such a run, or where the two differ around it, both whole."""
    ending, beginning = words(left)[-near:], words(right)[:near]
    a, b = [word.key for word in ending], [word.key for word in beginning]
    run = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    ahead, behind = min(run.a, run.b), min(len(a) - run.a, len(b) - run.b)
    over = difflib.SequenceMatcher(
        None, a[run.a - ahead : run.a + behind], b[run.b - ahead : run.b + behind], autojunk=False
    )
    if run.size < SHORTEST_RUN or over.ratio() < ALIKE:
        return f"{left}\n{right}"
    last = run.size - 1  # the run's last word is the right text's, with its punctuation
    return left[: ending[run.a + last].start] + right[beginning[run.b + last].start :]
