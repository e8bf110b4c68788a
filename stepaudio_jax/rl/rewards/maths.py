"""Mathematical answers, through math-verify (https://github.com/huggingface/Math-Verify)."""

from __future__ import annotations

import logging
import re
from typing import Any

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.rl.rewards.text import accepted, last_boxed

LONGEST = 4000
"""Characters of an answer's end, and of a box, that are looked at; a longer box is no answer."""

_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\begin")
_LEAD = re.compile(r"(?:.*\banswer\b)?(?:\s+is\b)?[\s:]*", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(  # its group is one; names of functions are none
    r"\\[A-Za-z]+|(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|exp|and)(?![A-Za-z])"
    r"|([A-Za-z]{3,}|(?<![A-Za-z])(?:so|it|is|we|to|of|in|an|at|be|by|as|if|on|no)(?![A-Za-z]))"
)
_UPRIGHT = re.compile(r"\\(?:mathrm|text)\s*\{\s*([A-Za-z])\s*\}")


@accuracy("maths")
def maths(sample: Sample) -> bool:
    """Is the answer's expression equal to the truth's, or to that of one of several given as a list?

    Read is the last \\boxed{…}; else an answer that is but an expression, after "The answer is" or the like; else what
    math-verify finds in the text. Equal is what math-verify takes for equal: numbers to six decimals, forms of one
    expression, sets in any order. An answer without an expression is wrong. The time limit is the runner's: sympy can
    take for ever.

    Raises:
      ValueError: a truth without an expression.
      ModuleNotFoundError: math-verify is not installed.
    """
    try:
        import math_verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('reward "maths": needs math-verify: pip install "stepaudio-jax[rl]"') from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off

    truths = {str(each): expressions(str(each)) for each in accepted(sample.truth)}
    if blank := [text for text, found in truths.items() if not found]:
        raise ValueError(f"truth: expected a mathematical expression, found {blank[0]!r}")
    said = expressions(sample.answer)
    return any(
        math_verify.verify(truth, said, timeout_seconds=None, raise_on_error=True) for truth in truths.values() if said
    )


def expressions(text: str) -> list[Any]:
    """What math-verify makes of a text: sympy's expression and the text it was; empty where it finds none."""
    import math_verify

    text = _UPRIGHT.sub(r"\1", text)  # math-verify takes \mathrm{e} for a unit and drops it

    def parse(piece: str) -> list[Any]:
        return math_verify.parse(piece, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]

    if (boxed := last_boxed(text)) is not None:
        return parse(rf"\boxed{{{boxed}}}") if boxed and len(boxed) <= LONGEST else []
    text = text[-LONGEST:].strip()
    statement = text[match.end() :].rstrip(" .") if (match := _LEAD.match(text)) else text
    words = any(match.group(1) for match in _WORD.finditer(statement))
    if statement and not words and "\n" not in statement and not _DELIMITER.search(statement):
        return parse(rf"\boxed{{{statement}}}")
    return parse(text)
