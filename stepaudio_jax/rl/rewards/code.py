"""Programs: does what the model wrote pass the tests? Runs it, so it is off unless the operator allows it."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.rl.rewards.sandbox import Limits, Ran, run
from stepaudio_jax.scoring.normal import listed

MOST_SECONDS = 20.0
"""Most that `program_seconds` may be; the reward's own limit lies above it, so that a slow program is a wrong one."""

_LONGEST_VALUE = 1 << 16  # bytes of a called expression's repr
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Test:
    """A text for standard input and what is to be written, or an expression and its value."""

    stdin: str = ""
    stdout: str | None = None
    call: str | None = None
    result: Any = None


@accuracy("code", runs_code=True, seconds=2 * MOST_SECONDS)
def code(
    sample: Sample,
    *,
    allow_code: bool = False,
    program_seconds: float = 10.0,
    memory: int = 512 << 20,
) -> bool:
    """Does the program in the answer, its last fenced block or all of it, pass every test of the truth?

    A test is {"stdin", "stdout"}, compared line by line without spaces at their ends; or {"call", "result"}, or the
    line "assert call == result" with a literal result. {"inputs": […], "outputs": […]} are tests of the first form.
    Each runs in a process of its own, confined (confined.py); values are compared outside it, so a program can neither
    see what is expected nor end the comparison. A program that fails, is too slow or too large is wrong.

    Args:
      allow_code: whether the operator lets this machine run what a model wrote.
      program_seconds: for all tests together, at most MOST_SECONDS.
      memory: bytes of address space.

    Raises:
      ValueError: not allowed; a truth without tests or with other ones; a limit out of its range.
      SandboxError: this machine cannot confine a program.
    """
    if not allow_code:
        raise ValueError(
            'reward "code": runs programs that the model wrote, which is off unless the operator allows it: expected '
            "allow_code=True, found False"
        )
    if not 0 < program_seconds <= MOST_SECONDS:
        raise ValueError(f"program_seconds: expected more than 0, at most {MOST_SECONDS:g}, found {program_seconds}")
    source, tests = extract(sample.answer), read_tests(sample.truth)
    deadline = time.monotonic() + program_seconds
    for test in tests:
        output = 1 << 20 if test.call is None else _LONGEST_VALUE
        ran = run(
            source,
            seconds=max(0.0, deadline - time.monotonic()),
            call=test.call,
            stdin=test.stdin,
            limits=Limits(memory=memory, output=output),
        )
        if not passes(test, ran):
            return False
    return True


def extract(answer: str) -> str:
    """The program in an answer: its last fenced block, or all of it where there is none."""
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def passes(test: Test, ran: Ran) -> bool:
    if not ran.well:
        return False
    written = ran.output.decode("utf-8", "replace")
    if test.call is None:
        return _lines(written) == _lines(test.stdout or "")
    try:
        return bool(_plain(ast.literal_eval(written)) == _plain(test.result))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False  # no literal, so not what was expected


def read_tests(truth: Any) -> list[Test]:
    """The tests of a truth, of the forms that `code` lists. Raises ValueError for others, and for none."""
    truth = listed(truth)
    if isinstance(truth, str):
        return _assertions(truth)
    if isinstance(truth, Mapping) and "inputs" in truth and "outputs" in truth:
        pairs = list(zip(truth["inputs"], truth["outputs"], strict=True))
        truth = [{"stdin": given, "stdout": expected} for given, expected in pairs]
    elif isinstance(truth, Mapping):
        truth = [truth]
    if not isinstance(truth, list | tuple) or not truth:
        raise ValueError(f"truth: expected tests of a program, found {truth!r}")
    return [test for each in truth for test in (_assertions(each) if isinstance(each, str) else [_test(each)])]


def _test(described: Any) -> Test:
    keys = set(described) if isinstance(described, Mapping) else set()
    if keys == {"call", "result"}:
        return Test(call=str(described["call"]), result=described["result"])
    if keys in ({"stdin", "stdout"}, {"stdout"}):
        return Test(stdin=str(described.get("stdin", "")), stdout=str(described["stdout"]))
    raise ValueError(f"truth: expected a test with stdin and stdout or with call and result, found {described!r}")


def _assertions(text: str) -> list[Test]:
    tests = []
    try:
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assert) or not isinstance(compared := statement.test, ast.Compare):
                raise ValueError
            if len(compared.ops) != 1 or not isinstance(compared.ops[0], ast.Eq | ast.Is):
                raise ValueError
            tests.append(Test(call=ast.unparse(compared.left), result=ast.literal_eval(compared.comparators[0])))
    except (ValueError, SyntaxError):
        raise ValueError(f'truth: expected lines "assert call == literal", found {text!r}') from None
    if not tests:
        raise ValueError(f"truth: expected tests of a program, found {text!r}")
    return tests


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _plain(value: Any) -> Any:
    """Tuples as lists: a truth that was JSON has none."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value
