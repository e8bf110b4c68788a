r"""Numbers: 1,000; -3/4; 2\frac{1}{2}; 50 %; 1e3; 1.5 × 10^3; 3万; seven: compared exactly or within a tolerance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from stepaudio_jax.scoring import numerals
from stepaudio_jax.scoring.normal import CJK, accepted, boxes, flat, shorten
from stepaudio_jax.scoring.statement import Mention, Strength, join_lines, stated

LONGEST = 400
"""Digits of a number, and its largest power of ten: more is not read as one."""

_GROUPED = r"\d{1,3}(?:,\d{2,3}){0,8},\d{3}(?!\d)|\d{1,3}(?:[ ]\d{3}){1,9}(?!\d)"
_PLAIN = rf"(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+"
_POWER = r"10\s?\^\s?\{{?(?P<{}>[-+]?\d+)\}}?"
_TIMES = r"(?:million|billion|thousand|hundred|dozen|k(?![A-Za-z])|成(?!为|了)|百|千(?![克米瓦卡赫帕焦伏字])|万|亿)"
# Not inside a word, a power, a date, a time, a version or a list without spaces.
_NUMBER = re.compile(
    rf"""(?<![A-Za-z0-9_^/\\])(?<!\d[.,:])(?<!\^\{{)
    (?P<sign>(?:(?<![\d)])[-+]|(?:负|零下|\bminus\b|\bnegative\b)\s?)?)[$€£¥]?(?P<inner>-(?=[\d.]))?
    (?:
      (?P<whole>\d+)[ ]+(?P<top>\d+)/(?P<bottom>\d+)
      | {_POWER.format("alone")}
      | (?P<number>{_PLAIN})
        (?: \s?/\s?(?P<divisor>{_PLAIN})
          | [eE](?P<e>[-+]?\d+)
          | \s?[x×*]\s?{_POWER.format("power")}
        )?
    )
    (?!\d|[.,:]\d|\s?/\s?\d|\s?\^|[xyzn](?![A-Za-z])|(?:st|nd|rd|th)\b|\s?[ap]\.?m\b|\s?\\(?:sqrt|pi|frac)|\s?[√π]|!\s?[-=×*/+÷]|点(?!\d|儿))
    (?:\s?(?P<times>{_TIMES}))?
    (?P<half>\s?and\s+a\s+half\b|[个年天块倍]半(?!天))?
    (?P<percent>\s?(?:%|percent\b|per\ cent\b|pct\b))?""",
    re.VERBOSE | re.IGNORECASE,
)
_IN_WORDS = ((numerals.ENGLISH, numerals.english), (numerals.CHINESE, numerals.chinese))
_SIZES = {
    "million": 10**6, "billion": 10**9, "thousand": 1000, "hundred": 100, "dozen": 12, "k": 1000,
    "成": Fraction(1, 10), "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_NO_UNIT = (
    r"(?!(?:but|than|instead|and|or|is|are|was|were|to|of|rather|not|plus|minus|times|with|in|for|from|by|at|on|out|per|which|so|"
    r"then|that|because|since|as|after|before|while|makes?|equals?|gives?|leaves?|hence|thus|therefore|would|cannot|can)\b)"
)
UNIT = (
    rf"(?:{_NO_UNIT}[A-Za-z°%/μΩ²³]+(?:\^\d)?(?:\s{_NO_UNIT}[A-Za-z]+)?|[{CJK}]{{1,6}}|)(?=[\s.,;:!?。()\]\"”’、—]|$)"
)
_OPERATOR = r"[-+×*÷·/+–]"
_MONEY = r"[ ]?[$€£¥(]*"
_AS_OPERAND = (
    re.compile(rf"(?:\d[ ]?[A-Za-z/{CJK}]{{1,12}}|[\d)%])[ ]?{_OPERATOR}{_MONEY}\Z|√\Z"),
    re.compile(
        rf"[ ]?(?:[A-Za-z{CJK}]{{1,8}}[ ]?)?(?:{_OPERATOR}{_MONEY}[-+]?[\d.]|[×*÷][ ]?\S|"
        r"(?:plus|minus|times|divided\s+by|加上?|减去?|乘以?|除以)[ ]?\d)"
    ),
)
_EQUATED = re.compile(r"[ ]?=")
_LABELLED = re.compile(
    r"(?:\b(?:questions?|problem|step|part|item|no\.|exercise|case|figure|table|chapter|page|equation|option|track|clip|"
    r"example|line|section|q|level|phase|stage|day|week|round)[ ]?#?|第|步骤|[<>≤≥] ?|\\(?:sqrt|sqrt\{|frac\{))\Z",
    re.IGNORECASE,
)
_BOUNDED = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller|higher|lower|longer|shorter|other)\s+than|\bat\s+(?:least|most)|"
    r"\bover|\bunder|\babove|\bbelow|\bup\s+to|\bbetween|\bno\s+(?:more|less|fewer)\s+than|\bbeyond|"
    r"超过|多于|少于|大于|小于|高于|低于|不到|不足|不够|未到|没到|不止|至少|至多|最多|最少|介于|不少于|不超过)(?:有|是|为|要)?\s?(?:or\s+equal\s+to\s?)?[$€£¥]?\Z",
    re.IGNORECASE,
)
_BOUNDED_AFTER = re.compile(
    rf"^[多余来](?![于少数自\d])|^\s?[A-Za-z{CJK}]{{0,3}}?(?:以上|以下|以内|[个次人只]多|[ ]?\+(?![ ]?\d)|[ ]?[<>≤≥]|"
    r"[ ]?or\s+(?:more|less|fewer|so)\b|[ ]?and\s+(?:above|up)\b|[ ]?之间)",
    re.IGNORECASE,
)
_MONEY_IN_TWO = re.compile(
    r"(?<![\d.,])(?:(\d{1,9})\s?(?:dollars?|pounds?|euros?|yuan|块钱?|元)(?:\s?,|\sand)?\s?(\d{1,2})\s?(cents?\b|pence\b|分|角|毛)|(\d{1,9})块(\d)(?![\d.]))",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"^\s?(?:st|nd|rd|th)\b|^\s?题", re.IGNORECASE)
_QUANTITY = (
    r"hours?|hrs?|h|minutes?|mins?|min|seconds?|secs?|sec|feet|foot|ft|inch(?:es)?|pounds?|lbs?|ounces?|oz|dollars?|cents?|weeks?|"
    r"days?|months?|years?|km|meters?|metres?|m|cm|kg|grams?|g|°|小时|个小时|分钟?|秒钟?|天|年|个月|周|元|块|角|米|厘米|千克|克|公里|尺|寸|斤|两|点|度|'|′"
)
RANGES = (
    rf"\s?(?:{UNIT})?\s?(?:to|~|到|至|through)\s?(?:about\s)?|[-–]|\s?(?:{_QUANTITY})\s?(?:,\s?|and\s|又|零)?\s?|"
    rf"\s[A-Za-z]+\s+(?:and|or)\s+"
)


def is_right(
    reply: str,
    truth: Any,
    *,
    tolerance: Any = 0,
    relative_tolerance: Any = 0,
    percent: bool = False,
) -> bool:
    """Is the number that a reply states the truth, or one of several given as a list?

    Args:
      tolerance, relative_tolerance: (of the truth) a difference that is allowed.
      percent: 50 and 50 % are the same; else 50 % is 1/2.

    Raises:
      ValueError: a truth that is no number, or a tolerance below 0.
    """
    truths = [_truth(each, percent) for each in accepted(truth)]
    absolute = _tolerance("tolerance", tolerance)
    relative = _tolerance("relative_tolerance", relative_tolerance)
    said = number_stated(reply, percent=percent)
    return said is not None and any(abs(said - each) <= max(absolute, relative * abs(each)) for each in truths)


def number_stated(reply: str, *, percent: bool = False) -> Fraction | None:
    """The number that a reply comes to; None where it states none, or several at once.

    Args:
      percent: 50 % is 50, not 1/2.
    """
    reply = shorten(reply)
    text = _MONEY_IN_TWO.sub(_in_one, join_lines(flat(reply)))
    found = _read(text, percent)
    if found is None and text != (unmarked := join_lines(flat("\u2060".join(["", reply.lstrip()])))):
        found = _read(unmarked, percent)
    return found


def is_bound(text: str, start: int, end: int) -> bool:
    """Is what stands there only said to be a bound: "more than 5", 5以上? Then it is no number that is stated."""
    before, after = text[max(0, start - 30) : start], text[end : end + 20]
    return bool(_BOUNDED.search(before) or _BOUNDED_AFTER.match(after))


def exactly(text: str, *, percent: bool = False) -> Fraction | None:
    """The number that a text is, with nothing beside it but a unit of money or %; None for any other text."""
    match = _NUMBER.fullmatch(flat(text).strip())
    return _value(match, percent) if match else None


def _read(text: str, percent: bool) -> Fraction | None:
    mentions = []
    for start, end, content in boxes(text):
        value = _in_box(content, percent)
        if value is not None:
            mentions.append(Mention(start, end, frozenset({value}), strength=Strength.ANSWERED))
        else:
            text = text[:start] + " " * (end - start) + text[end:]
    for box in mentions:
        text = text[: box.start] + "\n" * (box.end - box.start) + text[box.end :]
    in_digits = list(_mentions(text, mentions, _NUMBER, lambda match: _value(match, percent)))
    found = sorted([*mentions, *in_digits], key=lambda mention: mention.start)
    found = sorted([*found, *worded(text, found, percent)], key=lambda mention: mention.start)
    value = stated(text, found, unit=UNIT, ranges=RANGES)
    return value if isinstance(value, Fraction) else None


def _in_box(content: str, percent: bool) -> Fraction | None:
    """Of a box: its only number, or what its last equation comes to."""
    content = content.rpartition("=")[2]
    found = [value for match in _NUMBER.finditer(content) if (value := _value(match, percent)) is not None]
    rest = _NUMBER.sub(" ", content)
    if len(found) == 1 and not re.search(
        r"[\d\\^?]|\bor\b|或|[<>≤≥√π]|[-+×*÷]\s*[A-Za-z(]|[A-Za-z)]\s*[-+×*÷]", rest.replace("\\ ", " ")
    ):
        return found[0]
    if found:
        return None
    for pattern, read in _IN_WORDS:
        if match := pattern.match(content.strip()):
            return read(match, percent=percent)
    return None


def _mentions(
    text: str, boxed: list[Mention], pattern: re.Pattern[str], read: Callable[[re.Match[str]], Fraction | None]
) -> Iterator[Mention]:
    """Of numbers in digits, those neutral that are part of a sum, a bound, or the name of something."""
    for match in pattern.finditer(text):
        if any(box.start <= match.start() < box.end for box in boxed):
            continue
        before, after = text[max(0, match.start() - 30) : match.start()], text[match.end() : match.end() + 30]
        neutral = bool(
            _LABELLED.search(before)
            or _AS_OPERAND[0].search(before)
            or _AS_OPERAND[1].match(after)
            or _EQUATED.match(after)
            or _ORDINAL.match(after)
        )
        value = read(match)
        if value is None:
            neutral, value = True, Fraction(0)
        bounds = {None} if is_bound(text, *match.span()) else set()
        yield Mention(*match.span(), frozenset({value, *bounds}), neutral=neutral)


def worded(text: str, found: Sequence[Mention], percent: bool = False) -> Iterator[Mention]:
    """Of numbers in words apart from what was found: they count only where they are the answer, or all that is said."""
    for pattern, read in _IN_WORDS:
        for match in pattern.finditer(text):
            value = read(match, percent=percent)
            if value is not None and not any(each.start < match.end() and match.start() < each.end for each in found):
                yield Mention(*match.span(), frozenset({value}), passing=False)


def _truth(truth: Any, percent: bool) -> Fraction:
    value = None if isinstance(truth, bool) else number_stated(str(truth), percent=percent)
    if value is None:
        raise ValueError(f"truth: expected a number, found {truth!r}")
    return value


def _in_one(match: re.Match[str]) -> str:
    """12 dollars and 5 cents as 12.05 dollars, 12块5 as 12.5块."""
    if match[4]:
        return f"{match[4]}.{match[5]}块"
    return f"{match[1]}.{match[2] if match[3] in '角毛' else match[2].zfill(2)}元"


def _tolerance(name: str, given: Any) -> Fraction:
    tolerance = Fraction(str(given))
    if tolerance < 0:
        raise ValueError(f"{name}: expected 0 or more, found {tolerance}")
    return tolerance


def _value(match: re.Match[str], percent: bool) -> Fraction | None:
    """Of a match of _NUMBER; None where it is too long, or divides by 0."""
    if len(match.group()) > LONGEST:
        return None
    found = match.groupdict()
    if found["whole"] is not None:
        if int(found["bottom"]) == 0:
            return None
        value = int(found["whole"]) + Fraction(int(found["top"]), int(found["bottom"]))
    else:
        value = Fraction(re.sub("[, ]", "", found["number"] or "1"))
        if found["divisor"] is not None:
            divisor = Fraction(re.sub("[, ]", "", found["divisor"]))
            if divisor == 0:
                return None
            value /= divisor
        power = int(found["e"] or found["power"] or found["alone"] or 0)
        if abs(power) > LONGEST:
            return None
        value *= Fraction(10) ** power
    value += Fraction(1, 2) if found["half"] else 0
    value *= _SIZES[found["times"].lower()] if found["times"] else 1
    value = -value if found["sign"].strip() not in ("", "+") or found["inner"] else value
    return value / 100 if found["percent"] and not percent else value
