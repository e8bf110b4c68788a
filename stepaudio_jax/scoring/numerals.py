"""Numbers in words: "twenty-one", "two and a half", 一百零五, 三分之二, 百分之五十."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted([*_SMALL, *_LARGE], key=len, reverse=True))
_DIGIT = "|".join(word for word, number in _SMALL.items() if number < 10)
_PART = "|".join(_PARTS)
_TOP = rf"(?:an?|{_DIGIT})[\s-]+(?:{_PART})"
_DIGIT = "|".join([word for word, number in _SMALL.items() if number < 10] + ["oh"])
_PART = "|".join(_PARTS)
_DIGITS = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "俩": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN = "零〇一二两俩三四五六七八九十百千万亿"

ENGLISH = re.compile(
    r"(?<![A-Za-z-])(?:(?P<minus>minus|negative)\s+)?(?:"
    rf"(?P<words>(?:a\s+(?={'|'.join(_LARGE)}))?(?:{_WORD})(?:(?:\s+and\s+(?!{_TOP})|[\s-]+)(?:{_WORD}))*)"
    rf"(?:\s+point(?P<decimals>(?:[\s-]+(?:{_DIGIT}))+)|\s+and\s+(?P<more>{_TOP})s?)?"
    rf"(?:[\s-]+(?P<part>(?<=\bone[\s-])(?:{_PART})|(?:{_PART})(?=s)))?s?"
    rf"|(?P<alone>half|an?\s+(?:{_PART}))(?=\s+of\b|\s*(?:[.,;!?)]|$))"
    r")(?![A-Za-z-])"
    r"(?P<percent>\s?per\s?cent\b)?",
    re.IGNORECASE,
)
CHINESE = re.compile(
    rf"(?<![{_HAN}第每])(?P<minus>负|零下)?(?:(?P<percent>百分之)|(?P<bottom>[{_HAN}]+)分之)?(?P<top>[{_HAN}]+)(?:点(?P<decimals>[零〇一二三四五六七八九]+))?"
    r"(?P<half>[个年天块倍]?半(?![径球天夜]))?(?P<tenths>成(?![为了功员都人长本立绩语分果年熟就]))?"
    r"(?![共样起定些直般下旦会点致切边面时旁方体同概种])"
)


def english(match: re.Match[str], *, percent: bool = False) -> Fraction | None:
    """The value of a match of ENGLISH; None where the words are no number ("five six").

    Args:
      percent: fifty per cent is 50, not 1/2.
    """
    value = _fraction(match["alone"]) if match["alone"] else _cardinal(match["words"])
    if value is None:
        return None
    for place, word in enumerate(re.findall("[a-z]+", (match["decimals"] or "").lower()), 1):
        value += Fraction(_SMALL[word], 10**place)
    value += _fraction(match["more"]) if match["more"] else 0
    value /= _PARTS[match["part"].lower()] if match["part"] else 1
    value = -value if match["minus"] else value
    return value / 100 if match["percent"] and not percent else value


def _fraction(text: str) -> Fraction:
    """Of "half", "a quarter", "three quarter"."""
    *top, part = re.split(r"[\s-]+", text.lower())
    return Fraction(_SMALL.get(top[0], 1) if top else 1, _PARTS[part])


def _cardinal(text: str) -> Fraction | None:
    """Of "one hundred and five", or of a year, "nineteen ninety-nine"; None where the words are no number."""
    words = re.split(r"[\s-]+", text.lower())
    value = _below_a_trillion(words)
    if value is None and len(words) in (2, 3) and 11 <= _SMALL.get(words[0], 0) <= 20:
        year = _below_a_trillion(words[1:])
        return None if year is None or year < 10 else 100 * _SMALL[words[0]] + year
    return value


def _below_a_trillion(words: list[str]) -> Fraction | None:
    total = group = 0
    last = 10**12  # of the part before: within a group each is smaller than the one before
    for word in words:
        if word in ("and", "a"):
            continue
        if (large := _LARGE.get(word)) is None:
            if _SMALL[word] >= last or (last < 100 and (last < 20 or _SMALL[word] > 9)):
                return None
            group, last = group + _SMALL[word], _SMALL[word] or 1
        elif large == 100:
            group, last = (group or 1) * 100, 100
        else:
            total, group, last = total + (group or 1) * large, 0, 10**12
    return Fraction(total + group)


def chinese(match: re.Match[str], *, percent: bool = False) -> Fraction | None:
    """The value of a match of CHINESE; None where the characters are no number. Percent: as of `english`."""
    if match["half"] == "半" and not match["bottom"] and not match["percent"]:
        return Fraction(1, 2) if match["top"] == "一" else None
    top = _han(match["top"])
    bottom = (1 if percent else 100) if match["percent"] else _han(match["bottom"]) if match["bottom"] else 1
    if top is None or not bottom:
        return None
    value = Fraction(top)
    for place, digit in enumerate(match["decimals"] or "", 1):
        value += Fraction(_DIGITS[digit], 10**place)
    value += Fraction(1, 2) if match["half"] else 0
    if match["tenths"]:
        value = value * 10 if percent else value / 10
    value /= bottom
    return -value if match["minus"] else value


def _han(text: str) -> int | None:
    """一百零五 as 105, 二〇二四 as 2024; None where it is no number."""
    if not set(text) & {*_UNITS, "万", "亿"}:
        digits = [_DIGITS.get(letter) for letter in text]
        return int("".join(map(str, digits))) if len(digits) < 30 and (len(digits) != 2 or digits[0] == 0) else None
    for unit, size in (("亿", 10**8), ("万", 10**4)):
        if unit in text:
            before, _, after = text.partition(unit)
            high, low = _han(before) if before else None, _han(after.lstrip("零〇")) if after.lstrip("零〇") else 0
            if high is None or low is None:
                return None
            return high * size + low * (size // 10 if len(after) == 1 and low < 10 else 1)
    total = digit = 0
    pending = False
    for letter in text:
        if letter in _UNITS:
            total += (digit if pending else 1) * _UNITS[letter]
            digit, pending = 0, False
        elif pending and digit:
            return None
        else:
            digit, pending = _DIGITS[letter], True
    if pending and len(text) > 1 and text[-2] in "百千":
        digit *= _UNITS[text[-2]] // 10  # 一千五 is 1500
    return total + digit
