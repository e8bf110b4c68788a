r"""Mathematical expressions as text: where they stand in a reply, one spelling of each, which are too large.

A box, what $…$ or \(…\) enclose, an environment, and runs of numbers, single letters, LaTeX and operators are such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stepaudio_jax.scoring.normal import CJK, latex_thousands, unwrap_text

LARGEST_POWER = 10_000
"""An integer is not raised to more than this, nor is a factorial of more than this taken."""

_ENCLOSED = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\\d$])\$(?!\s?[\d,.]+\s[A-Za-z])([^$\n]+?)(?<!\\)\$(?!\d)"
    r"|(\\begin\{(\w+)\}.+?\\end\{\6\})",
    re.DOTALL,
)
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|mod|gcd|lcm|max|min"
_TOKEN = re.compile(
    rf"(?P<command>\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{{[^{{}}]*\}}|\\[A-Za-z]+|\\[%$,;:! {{}}])"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    rf"|(?P<name>(?<![A-Za-z])(?:{_FUNCTIONS})(?![A-Za-z]))"
    r"|(?P<letter>(?<![A-Za-z'’])[A-Za-z](?![A-Za-z'’])|[πθαβγλμωφ∞])"
    r"|(?P<operator>\*\*|[-+*/^_=<>≤≥≠≈±×÷·|√∪∩°%!:∈])"
    r"|(?P<comma>,\s?(?=[-+(\[\\\d{A-Za-z.]))"
    r"|(?P<bracket>[(\[{}\])])"
    r"|(?P<dots>(?<=[,+\d\s])\.{3})"
)
_SPACE = re.compile(r"[ \t]+")
_UNITS = re.compile(
    rf"(?<=[\d}})\]π])\s*(?:\\(?:text|mathrm)\s*\{{[^{{}}]*\}}(?:\^\{{?\d\}}?)?|(?<=[\d}}])\s*[{CJK}]+|\s[A-Za-z]{{2,}}(?:\s[A-Za-z]+)*)\s*$"
)
_PLAIN_WORDS = rf"(?:[A-Za-z]{{2,}}|[{CJK}])"

_SPELLINGS = (
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<!\\)\\[,;:! ]|~|\\quad|\\qquad"), " "),
    (re.compile(r"\\\$|[$€£¥]"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°)"), ""),
    (re.compile(r"(?<!\\)sqrt(?![A-Za-z])"), r"\\sqrt"),
    (re.compile(r"√"), r"\\sqrt "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s+(\d+(?:\.\d+)?|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-?\d{2,})"), r"^{\1}"),
    (re.compile(r"(?<![A-Za-z\\])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}"), r"(\1+\\frac{\2}{\3})"),
    (re.compile(r"(?<![\d./^])(\d+) (\d+)/(\d+)(?![\d/])"), r"(\1+\\frac{\2}{\3})"),
    (re.compile(r"π|(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"∞"), r"\\infty "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"∩"), r"\\cap "),
    (re.compile(r"±"), r"\\pm "),
    (re.compile(r"×"), r"\\times "),
    (re.compile(r"÷"), r"\\div "),
    (re.compile(r"·"), r"\\cdot "),
    (re.compile(r"≤"), r"\\le "),
    (re.compile(r"≥"), r"\\ge "),
    (re.compile(r"≠"), r"\\ne "),
    (re.compile(r"\\leq(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\geq(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"[bB]matrix"), "pmatrix"),
    (re.compile(r"^.*≈"), ""),
)
_DOTS = re.compile(r"\\[lcdv]?dots[a-z]?(?![A-Za-z])|\.\.\.|…|⋯")
_TIME = re.compile(r"\d\s*(?::|\\colon)\s*\d")
_FACTORIAL = re.compile(r"(\d+)\s*[)}]*!")
_NESTED_FACTORIAL = re.compile(r"!\s*[)}\]]+\s*!|!!!")
_FACTORIAL_OF_POWER = re.compile(r"(\d+)\^[({]*(\d+)[)}]*!")
_TOWER = re.compile(r"(\d+)((?:\^[({]*-?\d+)+)")


def spans(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, expression) of what is written as mathematics, in order; a reply's boxes must be blank in it."""
    enclosed = [(match.start(), match.end(), next(filter(None, match.groups()))) for match in _ENCLOSED.finditer(text)]
    at = 0
    for start, end, body in [*enclosed, (len(text), len(text), "")]:
        yield from _runs(text, at, start)
        if body.strip():
            yield start, end, body
        at = end


def canonical(expression: str) -> str:
    r"""One spelling: \dfrac as \frac, √2 as \sqrt{2}, 2\frac{1}{2} as a sum, no units, money signs or degrees."""
    expression = latex_thousands(expression).strip().rstrip("。．.,;:，；").strip()
    expression = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression) if _grouped(expression) else expression
    expression = _UNITS.sub("", expression) if re.search(r"\d|\\pi|π", expression) else expression
    expression = unwrap_text(expression)
    for pattern, replacement in _SPELLINGS:
        expression = pattern.sub(replacement, expression)
    return expression.strip()


def key(expression: str) -> str:
    """By which two of one spelling are compared: without spaces and needless braces."""
    expression = re.sub(r"\s+", "", canonical(expression))
    expression = re.sub(r"([\^_])\{(\w)\}", r"\1\2", _DOTS.sub("...", expression))
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", expression)


def in_words(expression: str) -> bool:
    r"""Is it text rather than mathematics: \text{even}, Tuesday, 偶数?"""
    text = unwrap_text(expression)
    bare = re.sub(rf"\\[A-Za-z]+|(?<![A-Za-z])(?:{_FUNCTIONS})(?![A-Za-z])", "0", text)
    return bool(re.search(_PLAIN_WORDS, bare)) and not re.search(r"[\d=+^_\\<>]", bare)


def is_uncomparable(expression: str) -> bool:
    """Has it dots, which leave something out, or is it a time or a ratio? Such are compared as they are written."""
    return bool(_DOTS.search(expression) or _TIME.search(expression))


def too_large(expression: str) -> bool:
    """Would a power or factorial in it be larger than anybody writes out? A first look, without evaluating anything."""
    text = re.sub(r"\s+", "", canonical(expression))
    if _NESTED_FACTORIAL.search(text) or any(_above(number) for number in _FACTORIAL.findall(text)):
        return True
    for base, power in _FACTORIAL_OF_POWER.findall(text):
        if _above(base) or _above(power) or len(base) * int(power) > 20 or int(base) ** int(power) > LARGEST_POWER:
            return True
    for base, powers in _TOWER.findall(text):
        exponents = [int(number[:9]) if len(number) < 9 else 10**9 for number in re.findall(r"\d+", powers)]
        value = exponents.pop()
        while exponents and value <= LARGEST_POWER:
            lower = exponents.pop()
            value = lower if lower < 2 or value == 0 else lower**value if value < 40 else LARGEST_POWER + 1
        if value > LARGEST_POWER and base not in ("0", "1"):
            return True
    return False


def _above(number: str) -> bool:
    return len(number) > 9 or int(number) > LARGEST_POWER


def _grouped(expression: str) -> bool:
    """Are its commas those of thousands? In (1,234) and 1,234,5 they are not."""
    return re.search(r"[(\[{]", re.sub(r"\\frac|\\sqrt|[_^]\{", "", expression)) is None and not re.search(
        r",\s*\d{1,2}(?!\d)|,\s", expression
    )


def _runs(text: str, begin: int, end: int) -> Iterator[tuple[int, int, str]]:
    """Of mathematics that nothing encloses."""
    tokens: list[re.Match[str]] = []
    at = begin
    while at < end:
        token = _TOKEN.match(text, at, end)
        space = _SPACE.match(text, at, end)
        if token is not None and _joins(tokens, token):
            tokens.append(token)
            at = token.end()
        elif token is not None:
            yield from _run(text, tokens)
            tokens = [token]
            at = token.end()
        elif space is not None:
            at = space.end()
        else:
            yield from _run(text, tokens)
            tokens = []
            at = _next_token(text, at, end)
    yield from _run(text, tokens)


def _next_token(text: str, at: int, end: int) -> int:
    found = _TOKEN.search(text, at + 1, end)
    return end if found is None else found.start()


def _joins(tokens: list[re.Match[str]], token: re.Match[str]) -> bool:
    """Does a token go on with the run? Two operands with a space between are two runs, but for 2 1/2 and 1 234."""
    if not tokens or tokens[-1].end() == token.start():
        return True
    last = tokens[-1]
    operands = {"number", "letter", "name", "command", "dots"}
    if last.lastgroup == "number" and token.lastgroup == "number":
        return bool(re.match(r"\d+/\d|\d{3}(?!\d)", token.string[token.start() : token.start() + 8]))
    if last.lastgroup in operands and token.lastgroup in operands:
        return "command" in (last.lastgroup, token.lastgroup) or last.lastgroup == "name"
    return not (last.lastgroup in operands and token.group() in "([{")


def _run(text: str, tokens: list[re.Match[str]]) -> Iterator[tuple[int, int, str]]:
    """The run without what at its ends belongs to the words around it."""
    while tokens and (
        tokens[-1].group() in (":", "=", "-", "+", "*", "/", "<", ">", "_", "^", "|", "·")
        or tokens[-1].lastgroup == "comma"
    ):
        tokens = tokens[:-1]
    while tokens and (
        tokens[0].group() in (":", "=", "*", "/", "≈", ",", "_", "^", "!", "%", ">", "·")
        or tokens[0].lastgroup == "comma"
    ):
        tokens = tokens[1:]
    opened = sum(token.group() in "([{" for token in tokens if token.lastgroup == "bracket")
    closed = sum(token.group() in ")]}" for token in tokens if token.lastgroup == "bracket")
    while tokens and opened > closed and tokens[0].group() in "([{":
        tokens, opened = tokens[1:], opened - 1
    while tokens and closed > opened and tokens[-1].group() in ")]}":
        tokens, closed = tokens[:-1], closed - 1
    kinds = {token.lastgroup for token in tokens}
    if tokens and kinds & {"number", "letter", "command", "name"}:
        expression = text[tokens[0].start() : tokens[-1].end()]
        if re.search(r"[A-Za-z0-9π∞]", expression):
            yield tokens[0].start(), tokens[-1].end(), expression
