"""Pieces of text that several rewards look at. All of it takes time linear in the text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_EDGES = " \t\r\n.,;:!?。，；：！？…\"'“”‘’`*_"
_ARTICLES = ("the", "a", "an")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def trim(text: str) -> str:
    """Compatibility forms (NFKC), single spaces, no punctuation or markup at the ends, no leading article.

    Where nothing would be left only spaces go: "?" is not "!".
    """
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    first, *rest = text.strip(_EDGES).split(" ")
    return " ".join(rest if rest and first.lower() in _ARTICLES else [first, *rest]) or text


def normalise(text: str) -> str:
    """`trim`, and letters of either case alike."""
    return trim(text).casefold()


def last_boxed(text: str) -> str | None:
    """What the last closed \\boxed{…} holds, the innermost of nested ones; None without one."""
    opened: list[tuple[bool, int]] = []  # whether it is a box, and where its content begins
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            if opened:
                box, begin = opened.pop()
                if box and (last is None or begin > last[0]):
                    last = begin, match.start()
        elif token.endswith("{") and token != r"\{":
            opened.append((token != "{", match.end()))
    return None if last is None else text[last[0] : last[1]].strip()


def unwrap_text(text: str) -> str:
    """LaTeX's \\text{…} and its like replaced by their content."""
    return _TEXT_COMMAND.sub(r"\1", text)


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
