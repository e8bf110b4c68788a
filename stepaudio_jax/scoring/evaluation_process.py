"""What runs in the process of evaluation.py: comparisons by math-verify, each within limits."""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

DIGITS = 30
"""To which two numbers are compared."""


def main(processor_seconds: int, memory: int) -> None:
    """Serves until standard input ends. A request is {"truth", "said"}; the answers are {"truth": true} once the truth
    is understood, or {"error"}, and {"equal"}."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401  # now, so that no comparison pays for it

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if sys.platform == "linux":
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))

    def answer(**said: Any) -> None:
        answers.write(json.dumps(said) + "\n")

    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit(processor_seconds)
        _serve(request["truth"], request["said"], answer)


def _serve(truth: str, said: str, answer: Callable[..., None]) -> None:
    try:
        expected = _understood(truth)
    except MemoryError:
        os._exit(1)
    except (Exception, RecursionError) as error:
        answer(error=f"{type(error).__name__}: {error}"[:300])
        return
    answer(truth=True)
    try:
        equal = are_equal(expected, _parsed(said))
    except (MemoryError, RecursionError):
        os._exit(1)
    except Exception:  # the truth equals itself without one, so it is what was said that has no value
        equal = False
    answer(equal=equal)


def _limit(seconds: int) -> None:
    """Of processor time, from now; over it the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


@functools.lru_cache(maxsize=64)
def _understood(truth: str) -> tuple[Any, ...]:
    expected = _parsed(truth)
    if all(isinstance(each, str) for each in expected):  # the text alone
        raise ValueError("math-verify cannot read it")
    are_equal(expected, expected)
    return expected


def _parsed(expression: str) -> tuple[Any, ...]:
    """What math-verify makes of an expression: sympy's, and the text it was. All of it is read as LaTeX, or none."""
    import math_verify

    found = math_verify.parse(
        rf"\boxed{{{expression}}}",
        [math_verify.LatexExtractionConfig()],
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        raise_on_error=True,
    )
    return tuple(found)


def are_equal(truth: tuple[Any, ...], said: tuple[Any, ...]) -> bool:
    """As math-verify says, unless both are numbers that are not: it looks at six decimals."""
    import math_verify

    if not truth or not said:
        return False
    verified = math_verify.verify(
        list(truth),
        list(said),
        timeout_seconds=None,  # pyright: ignore[reportArgumentType]
        raise_on_error=True,
    )
    return bool(verified) and not _differ(truth[0], said[0])


def _differ(one: Any, other: Any) -> bool:
    """Are these two numbers, or collections of numbers, that are not near each other?"""
    if hasattr(one, "flat") and hasattr(other, "flat"):  # matrices
        return any(_differ(*pair) for pair in zip(one.flat(), other.flat(), strict=False))
    if not all(getattr(each, "is_number", False) for each in (one, other)):
        pairs = _elements(one), _elements(other)
        return any(_differ(*pair) for pair in zip(*pairs, strict=False)) if all(pairs) else False
    numbers = [each.doit().evalf(DIGITS) for each in (one, other)]
    if not all(number.is_number and number.is_finite for number in numbers):
        return False
    difference, size = abs(numbers[0] - numbers[1]), max(abs(number) for number in numbers)
    written_out = any(atom.is_Float for each in (one, other) for atom in each.atoms())
    near = bool(difference <= size * (1e-5 if written_out else 1e-20))
    return not near and not _is_percentage(one, other)


def _elements(collection: Any) -> list[Any]:
    """Of a list or set, by size; none of anything else."""
    elements = list(getattr(collection, "args", ()))
    listed = type(collection).__name__ in ("FiniteSet", "Tuple") and all(getattr(e, "is_real", False) for e in elements)
    return sorted(elements, key=lambda element: element.doit().evalf(DIGITS)) if listed else []


def _is_percentage(one: Any, other: Any) -> bool:
    """Is one 100 times the other, as math-verify lets 9 % be 9?"""
    percents = [any(type(arg).__name__ == "UnevaluatedExpr" for arg in each.args) for each in (one, other)]
    numbers = [each.doit() for each in (one, other)]
    return percents[0] != percents[1] and any(100 * numbers[k] == numbers[1 - k] for k in (0, 1))
