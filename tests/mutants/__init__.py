"""Mutants: small faults that the tests must notice, a file for each room. `tools/mutants.py` plants them one by one.

Most are faults of wiring, on the way from a config to what is computed: an argument that is not passed, an option that
is not read, the wrong one of two variables. Each names the few tests that must fail, so that one takes seconds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault, and the tests that must notice it.

    Attributes:
      name: what is wrong, in a few words; no other mutant has it.
      file: path from the root of the project.
      old, new: a piece of the file's text that occurs exactly once, and what is put in its place.
      tests: files, or FILE::FUNCTION or FILE::FUNCTION[CASE], as pytest takes them.
      wiring: whether it is a fault of wiring, and not of one function's arithmetic.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    wiring: bool = False


def by_room() -> dict[str, tuple[Mutant, ...]]:
    """The mutants of each file of this folder, by the name of the file."""
    rooms = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {room: importlib.import_module(f"{__name__}.{room}").MUTANTS for room in rooms}


def problems(root: Path, mutants: Iterable[Mutant]) -> list[str]:
    """What keeps mutants of the project in a folder from meaning what they did, one line for each."""
    found, names = [], set()
    for mutant in mutants:
        if mutant.name in names:
            found.append(f"{mutant.name}: two mutants have this name")
        names.add(mutant.name)
        if mutant.old == mutant.new:
            found.append(f"{mutant.name}: old and new text are the same")
        file = root / mutant.file
        count = file.read_text(encoding="utf-8").count(mutant.old) if file.is_file() else 0
        if count != 1:
            where = mutant.file if file.is_file() else f"{mutant.file}, which does not exist"
            found.append(f"{mutant.name}: expected the old text once, found it {count} times in {where}")
        if not mutant.tests:
            found.append(f"{mutant.name}: names no tests")
        for test in mutant.tests:
            path, _, function = test.partition("::")
            function = function.partition("[")[0]
            if not (root / path).is_file() or f"def {function}" not in (root / path).read_text(encoding="utf-8"):
                found.append(f"{mutant.name}: expected a test {test}, found none")
    return found
