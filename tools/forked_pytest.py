"""Runs pytest in forks of a process that has imported the libraries: a run then begins at once, not after seconds.

Reads a line of JSON for each run, {"arguments": […], "printed": FILE}. Answers with two lines: the number of the
process, which leads a process group of its own, and when it has ended its exit status, negative for a signal. Nothing
of the project is imported before the fork, so each run reads its files anew.

Run:   python tools/forked_pytest.py LIBRARY…, in the folder of the project whose tests are to run
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any, NoReturn


def run_tests(arguments: list[str], printed: str) -> NoReturn:
    """In the fork."""
    status = 3  # pytest's number for an error of its own
    try:
        os.setsid()
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        import pytest

        status = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it, instead of this file's folder
    for name in ("pytest", *sys.argv[1:]):
        with contextlib.suppress(ImportError):  # a library that only some installations have
            importlib.import_module(name)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        process = os.fork()
        if not process:
            run_tests(**request)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
