"""Floods the converter with broken checkpoint folders, seeded: is each refused in words, and is none of them harmful?

    python tools/flood_checkpoints.py --cases 2000 --seed 1

Every case is a copy of a small valid folder with one thing changed (broken_checkpoints.py), given to a command of
`stepaudio convert`. It must end with exit code 0 or 2 as the change asks for, within LIMIT seconds, without a
traceback, and after a refusal leave nothing behind. What is equal must convert to the same tensors. A process of its
own runs the cases, so that one that crashes or hangs it is counted and the rest still run. Exit code 1 if anything went
wrong, or the process grew by more than MEMORY.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from broken_checkpoints import EITHER, EQUAL, FAMILIES, REFUSED, equal_layout, make_folders

from stepaudio_jax import cli

LIMIT = 60.0
"""Seconds that a case may take; a usual one takes a twentieth of one."""
MEMORY = 1 << 30
"""Bytes by which the process may grow beyond what a valid folder takes."""
LINES, LETTERS = 42, 1100
"""Of a message: a line for each of the first problems, a first and a last line; and characters of a line."""
class Result(NamedTuple):
    """`wrong`: what should not have been, or nothing. `memory`: the most bytes that the process has held so far."""

    case: int
    family: str
    code: int
    seconds: float
    memory: int
    wrong: str


class Hung(BaseException):
    """No error that a command could catch."""


def run_case(root: Path, seed: int, case: int) -> Result:
    """Makes a folder and runs a command on it, in this process, which must be in its main thread."""
    rng = random.Random(f"{seed} {case}")
    family = FAMILIES[case % len(FAMILIES)]
    kind = rng.choice(family.folders)
    work = root / "case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    folder = Path(shutil.copytree(root / kind, work / "folder"))
    expected = family.change(rng, folder)
    commands = {
        "peft": ["from-peft", "--base", str(root / "ours"), str(folder)],
        "parts": ["from-hf", "--decoder", str(folder / "decoder"), "--encoder", str(folder / "encoder")],
        "ours": ["to-hf", str(folder)],
        "adapters": ["to-hf", str(folder)],
    }
    begun = time.monotonic()
    code, said = _run([*commands.get(kind, ["from-hf", str(folder)]), str(work / "made")])
    seconds = time.monotonic() - begun
    wrong = _judge(code, said, expected, sorted(path.name for path in work.glob("made*")))
    if not wrong and expected == EQUAL:
        compared = [str(root / kind), str(work / "made")]
        wrong = "" if _run(["verify", *compared])[0] == 0 else f"is not equal to the folder {kind}"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Result(case, family.change.__name__, code, seconds, memory, wrong)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command; −1 where it raised or took too long."""

    def hung(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return cli.main(["convert", *arguments]), errors.getvalue()
    except Hung:
        return -1, f"took more than {LIMIT:.0f} s"
    except BaseException as error:
        return -1, f"Traceback: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _judge(code: int, said: str, expected: str, made: list[str]) -> str:
    lines = said.splitlines()
    if code == -1 or "Traceback" in said:
        return said[-500:]
    if code not in {REFUSED: (2,), EQUAL: (0,), EITHER: (0, 2)}[expected]:
        return f"exit code {code} where it should be {expected}: {said[-300:]}"
    if code == 2 and (made or not lines or len(lines) > LINES or max(map(len, lines)) > LETTERS):
        return f"left {made} behind, and said {len(lines)} lines: {said[:300]}"
    return ""


# The process that runs the cases, and the one that watches it.


def work(root: Path, seed: int, first: int, cases: int) -> None:
    run_case(root, seed, [family.change for family in FAMILIES].index(equal_layout))  # what a valid folder takes
    for case in range(first, cases):
        print(json.dumps(run_case(root, seed, case)._asdict()), flush=True)


def flood(root: Path, seed: int, cases: int) -> list[Result]:
    """Runs all cases, in a new process after one that crashed or does not answer."""
    results: list[Result] = []
    while len(results) < cases:
        command = [sys.executable, __file__, "--worker", str(root), "--first", str(len(results))]
        command += ["--seed", str(seed), "--cases", str(cases)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            line = "begins"
            while line and (answers := select.select([process.stdout], [], [], 4 * LIMIT)[0]):
                if line := process.stdout.readline():
                    results.append(Result(**json.loads(line)))
            if len(results) < cases:
                wrong = f"crashed with exit code {process.wait()}" if answers else "does not answer"
                family = FAMILIES[len(results) % len(FAMILIES)].change.__name__
                results.append(Result(len(results), family, -1, 0.0, 0, wrong))
                process.kill()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="how many (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(Path(args.worker), args.seed, args.first, args.cases)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_folders(Path(folder))
        results = flood(Path(folder), args.seed, args.cases)
    for name in dict.fromkeys(result.family for result in results):
        own = [result for result in results if result.family == name]
        codes = ", ".join(f"{count} × exit code {code}" for code, count in sorted(Counter(r.code for r in own).items()))
        print(f"{name:15}{len(own):5} cases: {codes}; the longest took {max(r.seconds for r in own):.2f} s")
    memory = [result.memory for result in results if result.memory]
    grown = max(memory) - memory[0]
    print(f"memory: {memory[0] / 1e6:.0f} MB after the first case, {grown / 1e6:.0f} MB more at most")
    wrong = [result for result in results if result.wrong]
    for result in wrong:
        print(f"WRONG case {result.case} of seed {args.seed} ({result.family}): {result.wrong}")
    print(f"{len(results)} cases of seed {args.seed}: {len(wrong)} went wrong")
    return 1 if wrong or grown > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
