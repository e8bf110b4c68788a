"""Are two expressions equal? Answered by a process of its own, which may use so much processor time and memory.

It holds math-verify and sympy, is started when first needed, is kept, and is replaced where a limit ended it. It says
when it has understood the truth; what ends it after that is what the reply wrote. The limit is one of processor time,
so a machine's load changes no verdict.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time

PROCESSOR_SECONDS = 3
"""Of processor time, for one comparison."""

MEMORY = 2 << 30
"""Bytes of address space."""

_WALL_SECONDS = 100.0  # only against a process that stands still
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from stepaudio_jax.scoring.evaluation_process import main
main(*json.loads(sys.argv[2]))
"""


class EvaluationError(RuntimeError):
    """The process that evaluates cannot be used: the scorer's fault, not the reply's."""


def are_equal(truth: str, said: str) -> bool | None:
    """Is what was said equal to the truth? None where evaluating it would go over the limits.

    Raises:
      ValueError: the truth cannot be evaluated within the limits.
      EvaluationError: the process does not start, or does not answer.
    """
    return _evaluator().are_equal(truth, said)


class Evaluator:
    """One process; threads take turns."""

    def __init__(self, processor_seconds: int = PROCESSOR_SECONDS, memory: int = MEMORY):
        self._limits = [processor_seconds, memory]
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def are_equal(self, truth: str, said: str) -> bool | None:
        """See the function of that name."""
        with self._turn:
            reader = self._send({"truth": truth, "said": said})
            first = reader.line()
            if first is None:
                raise ValueError(
                    f"truth: expected an expression that can be evaluated within limits, found {truth!r}: {self._end()}"
                )
            if "error" in first:
                raise ValueError(f"truth: expected a mathematical expression, found {truth!r}: {first['error']}")
            second = reader.line()
            if second is None:
                self._end()
                return None
            return second["equal"]

    def close(self) -> None:
        """Ends the process; the next comparison starts another one."""
        with self._turn:
            self._end()

    def _send(self, request: dict[str, str]) -> _Reader:
        message = json.dumps(request).encode() + b"\n"
        for _ in range(2):  # one that has ended with nothing to do is replaced
            process = self._process or self._start()
            try:
                assert process.stdin is not None
                process.stdin.write(message)
                process.stdin.flush()
                return _Reader(process)
            except OSError:
                self._end()
        raise EvaluationError("evaluation: its process ended before it was asked anything, twice")

    def _start(self) -> subprocess.Popen[bytes]:
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, paths, json.dumps(self._limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._process = process
        if _Reader(process).line() != {"ready": True}:
            raise EvaluationError(f"evaluation: its process did not start: {self._end()}")
        return process

    def _end(self) -> str:
        if (process := self._process) is None:
            return "it was not running"
        self._process = None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # of what it has not taken
                    pipe.close()
        return f"its process ended with status {status}"


class _Reader:
    """Lines of JSON from a process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        assert process.stdout is not None
        self._descriptor = process.stdout.fileno()
        self._received = b""
        self._deadline = time.monotonic() + _WALL_SECONDS

    def line(self) -> dict | None:
        """The next line; None where the process has ended.

        Raises:
          EvaluationError: it stands still.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    raise EvaluationError(f"evaluation: no answer within {_WALL_SECONDS:g} s")
                if not (piece := os.read(self._descriptor, 1 << 16)):
                    return None
                self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


_shared: tuple[int, Evaluator] | None = None
_sharing = threading.Lock()


def _evaluator() -> Evaluator:
    """The one of this process; a fork of it starts its own."""
    global _shared
    with _sharing:
        if _shared is None or _shared[0] != os.getpid():
            _shared = os.getpid(), Evaluator()
            atexit.register(_shared[1].close)
        return _shared[1]
