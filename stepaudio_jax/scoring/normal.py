r"""One normal form of replies, options and truths, before any scorer reads them. It takes time linear in the text.

`plain` makes compatibility forms, digits of any script, signs and spaces plain, and takes off Markdown and list marks.
`flat` also writes LaTeX as text: \frac{3}{4} as 3/4, \text{dog} as dog, 1\,234 as 1,234.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

LONGEST_READ = 8000
"""Characters of a reply that are read: of a longer one its beginning and its end."""

_BEGINNING = 1000

CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Chinese, Japanese and Korean letters, for a character class."""

_RAISED = re.compile("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹ⁿˣ]+")
_LOWERED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹ⁿˣ", "+-0123456789nx")
_FRACTION = re.compile("(\\d?)([¼-¾⅐-⅞↉])")
_DEGREE_LETTER = str.maketrans({"º": "°", "˚": "°"})
_NARROW = "\u00a0\u2000-\u200a\u202f\u205f'’＇"
_SPACES = re.compile(r"[ \t\v\f]+")
_AT_LINE_ENDS = re.compile(r"^ | $", re.MULTILINE)
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_SIGNS = str.maketrans({"−": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/", "∶": ":", "〜": "~", "～": "~"})
_DASH_SIGN = re.compile(rf"(?:(?<=^)|(?<=[\s=:({{\[,{CJK}]))–(?=\.?\d)", re.MULTILINE)
_THOUSANDS = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:(?:[{_NARROW}]|，)\d{{3}})+)(?!\d)")
_LIST_COMMA = re.compile("[，﹐]")
_CIRCLED = re.compile("[①-⑳❶-❿⓪➀-➉]\\s*")

_STRUCK = re.compile(r"~~[^~\n]+~~")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9)*\\])(\*{1,3})(?=[^\s*])([^*\n]+?)(?<=[^\s*])\1(?![A-Za-z0-9(*])")
_UNDERLINE = re.compile(r"(?<![A-Za-z0-9)}_\\])(_{1,3})(?=[^\s_{])([^_\n]+?)(?<=[^\s_])\1(?![A-Za-z0-9_{])")
_LEFT_OVER = re.compile(r"(?<![A-Za-z0-9)\s])\*{2,3}|\*{2,3}(?![A-Za-z0-9(\s])|^\*{2,3}|\*{2,3}$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:#{1,3}|#{5,6})[ \t]+|^[ \t]*#{4}[ \t]+(?=[A-Za-z]{2}|[\u4e00-\u9fff])", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
_MARK = re.compile(r"^[ \t]*(?:(?:[-+*•‣◦·▪●–—]|\[[ xX]\])[ \t]+)+(?=\S)", re.MULTILINE)
_NUMBERED = re.compile(rf"^[ \t]*[(]?(\d{{1,2}})(?:[.)][ \t]+|[)、](?=[{CJK}]))(?=\S)", re.MULTILINE)
_TAG = re.compile(r"<(answer|final_answer)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|center|sup|sub)\s*/?>", re.IGNORECASE)

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textup|texttt|mathrm|mathbf|mathit|mathsf|mbox|bf|operatorname)\s*\{([^{}]*)\}"
)
_LATEX_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\\[,;:! ]|\{,\}|~)\d{3})+)(?!\d)")
_FRAC = re.compile(r"(?:(\d)\s*)?\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\(?:checkmark)(?![A-Za-z])"), "✓"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|bf|rm)(?![A-Za-z])"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"(?<!\\)\\[,;:! ]|\\[()\[\]]|\$\$|(?<!\\)\$(?!\s?[-+]?\.?\d)"), " "),
    (re.compile(r"\\([%$#&_])"), r"\1"),
)
_CLOSED = re.compile(r"(?<!\\)\$\s?([-+]?[^$\n]*?)(?<!\\)\$")
_EDGES = " \t\r\n.,;:!?。，、；：！？…\"'“”‘’「」『』《》`*_"
_ARTICLES = ("the", "a", "an")
_OF_A_NOTE = ("minor", "major", "flat", "sharp", "maj", "min")


def shorten(text: str) -> str:
    """The beginning and the end of a text that is longer than LONGEST_READ; else the text."""
    if len(text) <= LONGEST_READ:
        return text
    return text[:_BEGINNING] + "\n" + text[_BEGINNING - LONGEST_READ :]


def plain(text: str) -> str:
    """Compatibility forms (NFKC), ASCII digits and signs, "2½" as 2 1/2, "x²" as x^2; without Markdown and list marks.

    What is struck through is left out. A full-width comma is one with a space after it, unless it groups thousands.
    """
    text = _UNSEEN.sub("", text.replace("\r\n", "\n"))
    text = "".join(letter if letter.isascii() or not letter.isdecimal() else _digit(letter) for letter in text)
    text = _RAISED.sub(_lowered, text.translate(_DEGREE_LETTER))
    text = _FRACTION.sub(_fraction, text)
    text = _THOUSANDS.sub(lambda match: match[1] + re.sub(r"\D(\d{3})", r",\1", match[2]), text)
    text = _LIST_COMMA.sub(", ", _CIRCLED.sub("\n", text))
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = _DASH_SIGN.sub("-", text.translate(_SIGNS))
    return _without_markdown(text)


def flat(text: str) -> str:
    r"""`plain`, and LaTeX as text: \frac{3}{4} as 3/4, 2\frac{1}{2} as 2 1/2, \text{dog} as dog, 1\,234 as 1,234."""
    text = plain(text)
    if "\\" in text or "$" in text or "{" in text:
        text = unwrap_text(latex_thousands(text))
        text = _CLOSED.sub(r" \1 ", text)
        text = _FRAC.sub(_slashed, text)
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def latex_thousands(text: str) -> str:
    r"""1\,234 and 1{,}234 as 1,234."""
    return _LATEX_THOUSANDS.sub(lambda match: match[1] + re.sub(r"\D+(\d{3})", r",\1", match[2]), text)


def unwrap_text(text: str) -> str:
    r"""LaTeX's \text{…} and its like replaced by their content."""
    for _ in range(3):  # of nested ones the inner first
        text, found = _TEXT_COMMAND.subn(r"\1", text)
        if not found:
            break
    return text


def trim(text: str) -> str:
    """`flat`, single spaces, no punctuation or markup at the ends, no leading article, which that of "A minor" is not.

    Where nothing would be left only spaces go: "?" is not "!".
    """
    text = " ".join(flat(text).split())
    first, *rest = _strip(text).split(" ")
    if first == "A" and rest and rest[0].lower() in _OF_A_NOTE:
        rest = []
        first = _strip(text)
    return " ".join(rest if rest and first.lower() in _ARTICLES else [first, *rest]) or text


def normalise(text: str) -> str:
    """`trim`, and letters of either case alike."""
    return trim(text).casefold()


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    r"""(start, end, content) of each closed \boxed{…} and <answer>…</answer> that no other one is inside, in order."""
    opened: list[tuple[bool, int, int]] = []  # whether it is a box, where it and where its content begins
    found: list[tuple[int, int, str]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            if opened:
                box, start, begin = opened.pop()
                if box and not (found and found[-1][0] > start):
                    found.append((start, match.end(), text[begin : match.start()].strip()))
        elif token.endswith("{") and token != r"\{":
            opened.append((token != "{", match.start(), match.end()))
    for match in _TAG.finditer(text):
        if not any(start < match.end() and match.start() < end for start, end, _ in found):
            found.append((match.start(), match.end(), match[2].strip()))
    yield from sorted(found)


def last_boxed(text: str) -> str | None:
    r"""What the last closed \boxed{…} holds, the innermost of nested ones; None without one."""
    found = list(boxes(text))
    return found[-1][2] if found else None


def listed(value: Any) -> Any:
    """An array of numpy's, as columns of a table may be, as a list; all else as it is."""
    return value.tolist() if getattr(value, "ndim", 0) else value


def accepted(truth: Any) -> list[Any]:
    """The answers that a truth accepts: those of a list, tuple, set or array, or itself; bytes as text.

    Raises:
      ValueError: there is none, or a blank one.
    """
    truth = listed(truth)
    answers = list(truth) if isinstance(truth, list | tuple | set | frozenset) else [truth]
    answers = [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]
    if not answers or any(answer is None or not str(answer).strip() for answer in answers):
        raise ValueError(f"truth: expected an answer or several, found {truth!r}")
    return answers


def _strip(text: str) -> str:
    """Without what stands at the ends, but for the point of .5"""
    stripped = text.strip(_EDGES)
    return f".{stripped}" if stripped[:1].isdigit() and text.split(stripped)[0].endswith(".") else stripped


def _digit(letter: str) -> str:
    return str(unicodedata.decimal(letter))


def _lowered(match: re.Match[str]) -> str:
    power = match.group().translate(_LOWERED)
    return f"^{power}" if len(power) == 1 else f"^{{{power}}}"


def _fraction(match: re.Match[str]) -> str:
    slashed = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
    return f"{match[1]} {slashed}" if match[1] else slashed


def _slashed(match: re.Match[str]) -> str:
    top, bottom = match[2] or match[3] or "", match[4] or match[5] or ""
    simple = all(re.fullmatch(r"\s*[\d.,]+\s*", part) for part in (top, bottom))
    if not simple:
        return f"{match[1] or ''} ({top})/({bottom})"
    return f"{match[1]} {top.strip()}/{bottom.strip()}" if match[1] else f"{top.strip()}/{bottom.strip()}"


def _without_markdown(text: str) -> str:
    text = _AT_LINE_ENDS.sub("", _SPACES.sub(" ", text))
    text = _FENCE.sub("", _STRUCK.sub(" ", text)).replace("`", "")
    text = _MARKUP.sub(" ", text)
    for _ in range(2):  # emphasis in emphasis
        text = _UNDERLINE.sub(r"\2", _EMPHASIS.sub(r"\2", text))
    text = _LEFT_OVER.sub("", text)
    text = _HEADING.sub("", _QUOTE.sub("", text))
    return _MARK.sub("", _without_numbers(_MARK.sub("", text)))


def _without_numbers(text: str) -> str:
    """Without the numbers of numbered lists. A list begins with 1; "7. That many." is none."""
    if not any(number == "1" for number in _NUMBERED.findall(text)):
        return text
    last = 0

    def strip(match: re.Match[str]) -> str:
        nonlocal last
        number = int(match[1])
        if number == 1 or number == last + 1:
            last = number
            return ""
        return match.group()

    return _NUMBERED.sub(strip, text)
