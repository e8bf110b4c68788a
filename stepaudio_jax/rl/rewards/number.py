"""Numeric answers: 1,000; -3/4; 2 1/2; 50 %; 1e3; 1.5 × 10^3; compared exactly, or within a tolerance."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.rl.rewards.text import accepted, last_boxed, unwrap_text

LONGEST = 400
"""Digits of a number, and its largest power of ten: more is not read as one."""

_PLAIN = r"(?:\d{1,3}(?:,\d{2,3}){0,8},\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = r"10\s?\^\s?\{{?(?P<{}>[-+]?\d+)\}}?"
# Not inside a word, a power, a date, a time, a version or a list without spaces.
_NUMBER = re.compile(
    rf"""(?<![\w./^])(?<!\d[,:])
    (?P<sign>[-+]?)\s?[$€£¥]?
    (?:
      (?P<whole>\d+)[ ]+(?P<top>\d+)/(?P<bottom>\d+)
      | {_POWER.format("alone")}
      | (?P<number>{_PLAIN})
        (?: \s?/\s?(?P<divisor>{_PLAIN})
          | [eE](?P<e>[-+]?\d+)
          | \s?[x×*]\s?{_POWER.format("power")}
        )?
    )
    (?!\d|[.,:]\d|\s?/\s?\d|\s?\^)
    (?P<percent>\s?(?:%|percent\b|per\ cent\b|pct\b))?""",
    re.VERBOSE | re.IGNORECASE,
)
_MARKER = re.compile(r"(?<![a-z])answer(?![a-z])|####|答案", re.IGNORECASE)
_LATEX = (
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;! ]|\*\*|(?<!\\)\$(?!\d)|\\[()\[\]]"), " "),
    (re.compile(r"\\([%$])"), r"\1"),
)
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SIGNS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "％": "%", "＋": "+", "－": "-", "．": ".", "，": ",", "／": "/"})


@accuracy("number", cheap=True)
def number(sample: Sample) -> bool:
    """Is the number that the answer states the truth, or one of several given as a list?

    The record's columns `tolerance` and `relative_tolerance` (of the truth) allow for a difference; without them it is
    none. 50 % is 1/2; with the column `percent` set, 50 and 50 % are the same.

    Raises:
      ValueError: a truth that is no number, or a tolerance below 0.
    """
    percent = bool(sample.extra.get("percent", False))
    truths = [_truth(each, percent) for each in accepted(sample.truth)]
    absolute, relative = (_tolerance(sample, name) for name in ("tolerance", "relative_tolerance"))
    said = stated(sample.answer, percent=percent)
    return said is not None and any(abs(said - each) <= max(absolute, relative * abs(each)) for each in truths)


def stated(text: str, *, percent: bool = False) -> Fraction | None:
    """The number a text comes to: in its last \\boxed{…}; else the first after its last "answer" with a number on the
    same line, or after that line's last "="; else its last one. None where there is none.

    Args:
      percent: 50 % is 50, not 1/2.
    """
    boxed = last_boxed(text)
    text = _plain(text if boxed is None else boxed)
    if boxed is None:
        markers = list(_MARKER.finditer(text))
        end = len(text)
        for match in reversed(markers):
            line, end = text[match.end() : end].partition("\n")[0], match.start()
            for said in (line.rpartition("=")[2], line):
                if (found := _NUMBER.search(said)) and (value := _value(found, percent)) is not None:
                    return value
    found = list(_NUMBER.finditer(text))
    return _value(found[-1], percent) if found else None


def _truth(truth: Any, percent: bool) -> Fraction:
    value = None if isinstance(truth, bool) else stated(str(truth), percent=percent)
    if value is None:
        raise ValueError(f"truth: expected a number, found {truth!r}")
    return value


def _tolerance(sample: Sample, name: str) -> Fraction:
    tolerance = Fraction(str(sample.extra.get(name, 0)))
    if tolerance < 0:
        raise ValueError(f"{name}: expected 0 or more, found {tolerance}")
    return tolerance


def _plain(text: str) -> str:
    """ASCII digits and signs, "½" as 1/2, "10³" as 10^3, without the LaTeX around a number."""
    text = _RAISED.sub(lambda match: "^" + match.group().translate(_LOWERED), unwrap_text(text)).translate(_SIGNS)
    text = "".join(letter if letter.isascii() else _ascii(letter) for letter in text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _ascii(letter: str) -> str:
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    if unicodedata.decomposition(letter).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", letter).replace("⁄", "/")
    return letter


def _value(match: re.Match[str], percent: bool) -> Fraction | None:
    if len(match.group()) > LONGEST:
        return None
    found = match.groupdict()
    if found["whole"] is not None:
        if int(found["bottom"]) == 0:
            return None
        value = int(found["whole"]) + Fraction(int(found["top"]), int(found["bottom"]))
    else:
        value = Fraction((found["number"] or "1").replace(",", ""))
        if found["divisor"] is not None:
            divisor = Fraction(found["divisor"].replace(",", ""))
            if divisor == 0:
                return None
            value /= divisor
        power = int(found["e"] or found["power"] or found["alone"] or 0)
        if abs(power) > LONGEST:
            return None
        value *= Fraction(10) ** power
    value = -value if found["sign"] == "-" else value
    return value / 100 if found["percent"] and not percent else value
