"""Do the tests notice a fault? Plants the mutants of tests/mutants/ one by one in a copy; their tests must fail.

The tests that the mutants name run once before, on the unchanged copy: a test that fails there kills nothing. A mutant
whose tests do not end within ten times the time that they took there is killed by hang.

Run:   python -m tools.mutants [--room=ROOM] [--only=PATTERN] [--part=I/N] [--workers=N] [--list]
Exit:  0 if every mutant was killed; 1 if one survived, or could not be tried; 2 if a list no longer fits the code
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import fnmatch
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.mutants import Mutant, by_room, problems

ROOT = Path(__file__).resolve().parent.parent
FORKED = Path(__file__).with_name("forked_pytest.py")
LIBRARIES = (
    *("hypothesis", "jax", "jax.numpy", "jax.experimental.pallas", "flax.nnx", "optax", "orbax.checkpoint"),
    *("tensorstore", "grain", "tokenizers", "ml_collections", "etils.epath", "soundfile", "soxr"),
    *("huggingface_hub", "rich.progress"),
)
"""What takes long to import, and no mutant changes."""
LIMIT_FACTOR, LEAST_LIMIT = 10.0, 120.0
"""How long a mutant's tests may take: so many times as long as without it, and so many seconds at least."""
BASELINE_LIMIT = 3_600.0
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class Outcome(NamedTuple):
    """What became of a mutant: "killed", "killed by hang", "survived" or "error"; `by`: the test that failed first, or
    why there was an error."""

    mutant: Mutant
    verdict: str
    seconds: float
    by: str = ""


class Copy:
    """A copy of the project in which one test run at a time takes place, forked from a process of its own."""

    def __init__(self, folder: Path, root: Path, files: Sequence[str], cache: Path, libraries: Sequence[str] = ()):
        self.tree, self._temporary = folder / "tree", folder / "tmp"
        self._temporary.mkdir(parents=True)
        for name in files:
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"} | {
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same size in the same second would find the old one's
            "CI": "1",  # hypothesis draws the same examples every time
            "STEPAUDIO_TESTS": str(cache),
            "TMPDIR": str(self._temporary),
        }
        self._server = subprocess.Popen(
            [sys.executable, str(FORKED), *libraries],
            cwd=self.tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._running = 0

    def pytest(self, arguments: Sequence[str], limit: float) -> tuple[int | None, str]:
        """The exit status, None if it did not end in time, and what was printed."""
        assert self._server.stdin is not None and self._server.stdout is not None
        printed = self._temporary / "printed"
        options = ["-q", "--no-header", "-rfE", "--color=no", "-p", "no:cacheprovider"]
        options += ["--assert=plain"]  # a difference of two long lists, which nobody reads, can take minutes to tell
        options += [f"--basetemp={self._temporary / 'pytest'}", *arguments]
        self._server.stdin.write(json.dumps({"arguments": options, "printed": str(printed)}).encode() + b"\n")
        self._running = int(self._answer())
        ended, _, _ = select.select([self._server.stdout], [], [], limit)
        self.stop()  # also what a test that failed has left running
        status = int(self._answer())
        return status if ended else None, printed.read_text(errors="replace")

    def _answer(self) -> bytes:
        """The server's next line; unbuffered, so that `select` sees all that is left."""
        assert self._server.stdout is not None
        if not (line := self._server.stdout.readline()):
            raise RuntimeError(f"{FORKED.name} has ended, with status {self._server.wait()}")
        return line

    def stop(self) -> None:
        """Ends the run that is under way, and all it has started."""
        if self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running, signal.SIGKILL)

    def close(self) -> None:
        self.stop()
        self._server.kill()
        self._server.wait()

    def try_mutant(self, mutant: Mutant, limit: float) -> Outcome:
        """Plants it, runs its tests until one fails, and takes it out again."""
        file, begun = self.tree / mutant.file, time.monotonic()
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            status, printed = self.pytest(["-x", *mutant.tests], limit)
        finally:
            file.write_text(text, encoding="utf-8")
        seconds = time.monotonic() - begun
        if status is None:
            return Outcome(mutant, "killed by hang", seconds)
        if status == 0:
            return Outcome(mutant, "survived", seconds)
        if failed := FAILED.search(printed):
            return Outcome(mutant, "killed", seconds, failed[1])
        if status in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGFPE):
            return Outcome(mutant, "killed", seconds, f"the process ended with {signal.Signals(-status).name}")
        if "while loading conftest" in printed:  # before any test is known
            return Outcome(mutant, "killed", seconds, "the import of conftest.py")
        last = printed.strip().splitlines()[-1:] or ["nothing was printed"]
        return Outcome(mutant, "error", seconds, f"pytest ended with status {status}: {last[0]}")


class Baseline(NamedTuple):
    """How the tests fare without a mutant.

    Attributes:
      seconds: of each test that passed, by its id.
      start: seconds that every run takes besides.
    """

    seconds: Mapping[str, float]
    start: float

    def of(self, test: str) -> dict[str, float]:
        """The tests that passed among those that an id stands for."""
        return {name: took for name, took in self.seconds.items() if re.match(re.escape(test) + r"($|::|\[)", name)}

    def limit(self, mutant: Mutant) -> float:
        took = {name: seconds for test in mutant.tests for name, seconds in self.of(test).items()}
        return max(LEAST_LIMIT, LIMIT_FACTOR * (self.start + sum(took.values())))


def baseline(copy: Copy, tests: Sequence[str]) -> tuple[Baseline, dict[str, str]]:
    """The tests without a mutant, and of those that cannot be used why."""
    report, begun = copy.tree.parent / "baseline.xml", time.monotonic()
    _, printed = copy.pytest([f"--junitxml={report}", "-o", "junit_duration_report=total", *tests], BASELINE_LIMIT)
    passed: dict[str, float] = {}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            if not list(case.iterfind("failure")) + list(case.iterfind("error")) + list(case.iterfind("skipped")):
                passed[_test_id(copy.tree, case)] = float(case.get("time", 0))
    made = Baseline(passed, max(0.0, time.monotonic() - begun - sum(passed.values())))
    failed = FAILED.findall(printed)
    unusable = {}
    for test in tests:
        if fails := [name for name in failed if re.match(re.escape(test) + r"($|::|\[)", name)]:
            unusable[test] = f"{fails[0]} fails without the mutant"
        elif not made.of(test):
            unusable[test] = f"{test}: no test of it passes without the mutant; it is skipped here, or was not found"
    return made, unusable


def _test_id(tree: Path, case: ElementTree.Element) -> str:
    """FILE::NAME, or FILE::CLASS::NAME, of a line of pytest's report."""
    parts = case.get("classname", "").split(".")
    length = next((n for n in range(len(parts), 0, -1) if (tree / f"{'/'.join(parts[:n])}.py").exists()), len(parts))
    return "::".join([f"{'/'.join(parts[:length])}.py", *parts[length:], case.get("name", "")])


def run(
    mutants: Sequence[Mutant], root: Path, files: Sequence[str], workers: int, libraries: Sequence[str] = ()
) -> list[Outcome]:
    """Tries all of them, in their order.

    Args:
      files: of the project, that a copy needs; paths from `root`.
      workers: copies, each with one test run at a time.
      libraries: to be imported once and not for each run.
    """
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left:"), TimeRemainingColumn()]
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as name:
        folder, idle = Path(name), queue.SimpleQueue[Copy]()
        copies = [Copy(folder / str(i), root, files, folder / "cache", libraries) for i in range(workers)]
        for copy in copies:
            idle.put(copy)

        def on_a_copy(function, *arguments):
            copy = idle.get()
            try:
                return function(copy, *arguments)
            finally:
                idle.put(copy)

        def attempt(mutant: Mutant) -> Outcome:
            if why := [unusable[test] for test in mutant.tests if test in unusable]:
                return Outcome(mutant, "error", 0.0, why[0])
            return on_a_copy(Copy.try_mutant, mutant, whole.limit(mutant))

        pool = concurrent.futures.ThreadPoolExecutor(workers)
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
                task = bar.add_task("tests without a mutant", total=None)
                shares = _shares([test for mutant in mutants for test in mutant.tests], workers)
                found = list(pool.map(lambda tests: on_a_copy(baseline, tests), shares))
                seconds = {test: took for made, _ in found for test, took in made.seconds.items()}
                whole = Baseline(seconds, max((made.start for made, _ in found), default=0.0))
                unusable = {test: why for _, bad in found for test, why in bad.items()}
                bar.reset(task, total=len(mutants), description="mutants")
                futures = [pool.submit(attempt, mutant) for mutant in mutants]
                for done in concurrent.futures.as_completed(futures):
                    mutant, verdict, took, _ = done.result()
                    bar.console.print(f"{verdict}: {mutant.name} ({took:.0f} s)", markup=False, highlight=False)
                    bar.advance(task)
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.close()
            pool.shutdown()


def _shares(tests: Sequence[str], workers: int) -> list[list[str]]:
    """The distinct tests, those of one file together, in as many parts as there are workers and files."""
    files: dict[str, list[str]] = collections.defaultdict(list)
    for test in dict.fromkeys(tests):
        files[test.partition("::")[0]].append(test)
    parts = [[test for of_file in list(files.values())[i::workers] for test in of_file] for i in range(workers)]
    return [part for part in parts if part]


def choose(
    rooms: Mapping[str, Sequence[Mutant]], *, room: str = "", only: str = "", part: tuple[int, int] = (0, 1)
) -> list[Mutant]:
    """The mutants of a room, whose name fits a pattern (or has it in it), and of those the I-th of N parts."""
    number, parts = part
    fitting = [
        mutant
        for name, mutants in rooms.items()
        for mutant in mutants
        if room in ("", name) and (only in mutant.name or fnmatch.fnmatchcase(mutant.name, only))
    ]
    return fitting[number::parts]


def table(rooms: Mapping[str, Sequence[Mutant]], outcomes: Sequence[Outcome]) -> tuple[Table, Table]:
    """Every mutant, and a line for each room."""
    each = Table("room", "mutant", "", "result", "s", "killed by", title="Mutants")
    sums = Table("room", "mutants", "killed", "of them by hang", "survived", "errors", "seconds", title="By room")
    style = {"killed": "green", "killed by hang": "yellow", "survived": "bold red", "error": "bold red"}
    for room, mutants in rooms.items():
        own = [outcome for outcome in outcomes if outcome.mutant in mutants]
        if not own:
            continue
        each.add_section()
        for mutant, verdict, seconds, by in own:
            kind, result = "wiring" if mutant.wiring else "", f"[{style[verdict]}]{verdict}"
            each.add_row(room, mutant.name, kind, result, f"{seconds:.0f}", escape(by.removeprefix("tests/")))
        count = collections.Counter(outcome.verdict for outcome in own)
        hung, killed = count["killed by hang"], count["killed"] + count["killed by hang"]
        numbers = len(own), killed, hung, count["survived"], count["error"], round(sum(o.seconds for o in own))
        sums.add_row(room, *map(str, numbers))
    return each, sums


def project_files(root: Path) -> list[str]:
    """What git tracks, and what it would if it were asked to, without what is ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"part: expected I/N with I from 0 to N - 1, such as 0/7, found {text}")
    return int(match[1]), int(match[2])


def main() -> int:
    rooms = by_room()
    parser = argparse.ArgumentParser("python -m tools.mutants", description="Plants faults that the tests must notice.")
    parser.add_argument("--room", default="", choices=["", *rooms], metavar="ROOM", help=", ".join(rooms))
    parser.add_argument("--only", default="", metavar="PATTERN", help="part of a name, or a pattern such as '*mask*'")
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="every N-th, from I on: 0/7 … 6/7")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="test runs beside each other (2)")
    parser.add_argument("--list", action="store_true", help="only name them")
    arguments = parser.parse_args()
    chosen = choose(rooms, room=arguments.room, only=arguments.only, part=arguments.part)
    if wrong := problems(ROOT, [mutant for mutants in rooms.values() for mutant in mutants]):
        print("\n".join(wrong), file=sys.stderr)
        return 2
    if arguments.list or not chosen:
        print("\n".join(f"{mutant.name} ({mutant.file})" for mutant in chosen) or "no mutant of this name")
        return 0 if chosen else 2
    workers = max(1, min(arguments.workers, len(chosen)))
    outcomes = run(chosen, ROOT, project_files(ROOT), workers, LIBRARIES)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for made in table(rooms, outcomes):
        console.print(made)
    bad = [outcome for outcome in outcomes if not outcome.verdict.startswith("killed")]
    for outcome in bad:
        console.print(f"{outcome.verdict}: {outcome.mutant.name} {outcome.by}", markup=False, highlight=False)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
