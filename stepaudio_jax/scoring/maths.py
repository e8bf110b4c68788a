r"""Mathematical answers: which expression a reply states, and whether it equals the truth.

Equal is what math-verify (https://github.com/huggingface/Math-Verify) takes for equal, but for what it is known to get
wrong: numbers that differ beyond the sixth decimal, series with dots, clock times, \sqrt(2). It runs in a process of
its own with limits (evaluation.py), for sympy may take for ever. What a reply itself makes too large to evaluate is
wrong, and told apart, so that it can be counted; an error is raised only where the truth or the scorer is to blame.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib.util
import re
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction
from typing import Any

from stepaudio_jax.scoring import evaluation, expression, words
from stepaudio_jax.scoring.normal import accepted, boxes, plain, shorten, unwrap_text
from stepaudio_jax.scoring.number import RANGES, UNIT, exactly, worded
from stepaudio_jax.scoring.statement import Mention, Strength, join_lines, stated

LONGEST = 1000
"""Characters of an expression: a longer one is no answer."""

_OF_THE_QUESTION = re.compile(
    r"(?:\b(?:answer|solution)s?\s+(?:to|of|for)|\b(?:solve|compute|evaluate|simplify|calculate|question|problem|step|part|exercise|equation)|第)"
    r"\s*(?:the\s+)?(?:question\s+|equation\s+|expression\s+)?$",
    re.IGNORECASE,
)
_OF_THE_QUESTION_AFTER = re.compile(r"^\s*(?:的(?:答案|结果|值|解)|题)")


class Verdict(enum.Enum):
    """OVER_LIMITS: wrong, for the reply's own expression cannot be evaluated within bounds."""

    RIGHT = "right"
    WRONG = "wrong"
    OVER_LIMITS = "over_limits"


def judge(reply: str, truth: Any) -> Verdict:
    """Does the expression that a reply states equal the truth, or one of several given as a list?

    Raises:
      ValueError: a truth without an expression, or one that cannot be evaluated within bounds.
      ModuleNotFoundError: math-verify is not installed.
      evaluation.EvaluationError: the process that evaluates does not start, or does not answer.
    """
    _need_math_verify()
    truths = [_truth(str(each)) for each in accepted(truth)]
    said = expression_stated(reply)
    verdicts = []
    for each in truths:
        if expression.in_words(each):
            verdicts.append(Verdict.RIGHT if _is_right_in_words(reply, each) else Verdict.WRONG)
        elif said is None or len(said) > LONGEST:
            verdicts.append(Verdict.WRONG)
        else:
            verdicts.append(compare(said, each))
        if verdicts[-1] is Verdict.RIGHT:
            return Verdict.RIGHT
    return Verdict.OVER_LIMITS if Verdict.OVER_LIMITS in verdicts else Verdict.WRONG


def expression_stated(reply: str) -> str | None:
    """The expression that a reply states; None where it states none, or several at once."""
    text = join_lines(plain(shorten(reply)))
    mentions: list[Mention] = []
    sources: dict[Hashable, str] = {}  # by what is the same in all spellings: of two spellings the last

    def value(source: str) -> str:
        number = exactly(source)
        same = expression.key(source) if number is None or "%" in source else str(number)
        sources[same] = source.strip()
        return same

    for start, end, content in boxes(text):
        if re.search(r"\w|∞", content):
            mentions.append(Mention(start, end, frozenset({value(content)}), strength=Strength.ANSWERED))
        else:
            text = text[:start] + " " * (end - start) + text[end:]
    outside = list(text)
    for mention in mentions:
        outside[mention.start : mention.end] = "\n" * (mention.end - mention.start)
    in_words = list(worded("".join(outside), ()))
    for mention in _mentions(text, "".join(outside), value):
        inside = any(each.start <= mention.start and mention.end <= each.end for each in in_words)
        if not inside:
            in_words = [each for each in in_words if each.end <= mention.start or mention.end <= each.start]
            mentions.append(mention)
    for mention in in_words:
        (number,) = mention.values
        mentions.append(dataclasses.replace(mention, values=frozenset({value(str(number))})))
    mentions.sort(key=lambda mention: mention.start)
    found = stated(text, mentions, unit=UNIT, ranges=RANGES)
    return None if found is None else sources[found]


def compare(said: str, truth: str) -> Verdict:
    """Of two expressions."""
    if expression.key(said) == expression.key(truth):
        return Verdict.RIGHT
    if expression.is_uncomparable(said) or expression.is_uncomparable(truth):
        return Verdict.WRONG
    said, truth = expression.canonical(said), expression.canonical(truth)
    numbers = exactly(said), exactly(truth)
    if numbers[0] is not None and numbers[1] is not None:
        return Verdict.RIGHT if _are_equal(numbers[0], numbers[1], said, truth) else Verdict.WRONG
    if expression.in_words(said):
        return Verdict.WRONG
    if expression.too_large(said):
        return Verdict.OVER_LIMITS
    if "=" not in truth and "," not in said:
        said = said.rpartition("=")[2]
    equal = evaluation.are_equal(truth, said)
    return Verdict.OVER_LIMITS if equal is None else Verdict.RIGHT if equal else Verdict.WRONG


def _mentions(text: str, outside: str, value: Callable[[str], str]) -> Iterator[Mention]:
    for start, end, found in expression.spans(outside):
        before, after = text[max(0, start - 40) : start], text[end : end + 10]
        neutral = bool(_OF_THE_QUESTION.search(before) or _OF_THE_QUESTION_AFTER.match(after))
        passing = re.search(r"\d|\\[A-Za-z]|[π∞√]|[A-Za-z)]\s*[-+*/^=]\s*[A-Za-z(]", found) is not None
        yield Mention(start, end, frozenset({value(found)}), passing=passing, neutral=neutral)


def _truth(text: str) -> str:
    content = plain(text).strip()
    if boxed := list(boxes(content)):
        content = boxed[-1][2]
    if match := re.fullmatch(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", content, re.DOTALL):
        content = next(filter(None, match.groups()))
    if not re.search(r"\w|∞", unwrap_text(content)):
        raise ValueError(f"truth: expected a mathematical expression, found {text!r}")
    return content.strip()


def _is_right_in_words(reply: str, truth: str) -> bool:
    return words.is_right(reply, truth) or words.is_right(plain(reply).replace("\\(", "").replace("$", ""), truth)


def _are_equal(said: Fraction, truth: Fraction, *spellings: str) -> bool:
    """Exactly; to six decimals where one is written with a point; and 9 % is both 9 and 0.09."""
    percents = ["%" in spelling for spelling in spellings]
    if percents[0] != percents[1]:
        raised = (said * 100, truth) if percents[0] else (said, truth * 100)
        if raised[0] == raised[1] and raised[0].denominator == 1:
            return True
    if any("." in spelling for spelling in spellings):
        return abs(said - truth) <= min(Fraction(1, 2 * 10**6), abs(truth) / 10**5)
    return said == truth


@functools.lru_cache(maxsize=1)
def _need_math_verify() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise ModuleNotFoundError('reward "maths": needs math-verify: pip install "stepaudio-jax[rl]"')
