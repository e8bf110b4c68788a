"""Answers in words: is the whole reply, or what it calls its answer, the truth in its normal form?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from stepaudio_jax.scoring.normal import LONGEST_READ, accepted, boxes, flat, normalise, shorten, trim
from stepaudio_jax.scoring.statement import Mention, Strength, join_lines, stated

_ENDS = re.compile(
    r"^[\s)\]}\"”’'」】>]*(?:$|[.;!。—–\n(]|[,:]\s*(?:\"|not|because|since|as|so|which|不是|而不是|而非|因为|理由))"
)


def is_right(reply: str, truth: Any) -> bool:
    """Is the reply as a whole, or what it says is its answer, the truth, or one of several given as a list?

    Raises:
      ValueError: no truth, or a blank one.
    """
    truths = [str(each) for each in accepted(truth)]
    if len(reply) <= LONGEST_READ and normalise(reply) in {normalise(each) for each in truths}:
        return True
    text = join_lines(flat(shorten(reply)))
    return any(_states(text, each) for each in truths)


def _states(text: str, truth: str) -> bool:
    body = trim(truth)
    if not any(letter.isalnum() for letter in body):
        return False
    mentions: list[Mention] = []
    for start, end, content in boxes(text):
        right = normalise(content) == normalise(truth)
        if any(letter.isalnum() for letter in content):
            mentions.append(Mention(start, end, frozenset({right}), strength=Strength.ANSWERED))
        else:
            text = text[:start] + " " * (end - start) + text[end:]
    taken = [(mention.start, mention.end) for mention in mentions]
    mentions += [each for each in _mentions(text, body) if not any(a <= each.start < b for a, b in taken)]
    mentions.sort(key=lambda mention: mention.start)
    return stated(text, mentions, least=Strength.ANSWERED) is True


def _mentions(text: str, body: str) -> Iterator[Mention]:
    """Of the truth, where nothing goes with it that would make it another answer: "hot dog", "dog or cat"."""
    pattern = r"\s+".join(map(re.escape, body.split()))
    for match in re.finditer(rf"(?<![A-Za-z0-9])(?:an?\s+|the\s+)?{pattern}(?![A-Za-z0-9])", text, re.IGNORECASE):
        clean = _ENDS.match(text[match.end() : match.end() + 40]) is not None
        yield Mention(*match.span(), frozenset({True} if clean else {True, False}), passing=False)
