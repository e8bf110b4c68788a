"""The lists of mutants keep up with the code, and the tool that plants them tells the killed from the survivors."""

import sys
from pathlib import Path

import pytest

from tests.mutants import Mutant, by_room, problems
from tools import mutants as tool

ROOT = Path(__file__).resolve().parent.parent


def test_every_mutant_still_fits_the_code():
    rooms = by_room()
    everything = [mutant for of_room in rooms.values() for mutant in of_room]
    assert len(everything) >= 80 and len(rooms) >= 7
    assert problems(ROOT, everything) == []


SOURCE = '''"""A small project."""


def double(x):
    return 2 * x


def unused(x):
    return x + 1
'''
TESTS = '''"""Its tests."""

from small_project.numbers import double


def test_double():
    assert double(3) == 6


def test_broken():
    assert double(3) == 7
'''
FILE, GOOD = "small_project/numbers.py", ("tests/test_numbers.py::test_double",)
FILES = {FILE: SOURCE, "tests/test_numbers.py": TESTS, "small_project/__init__.py": '"""Empty."""'}
KILLED = Mutant("killed", FILE, "2 * x", "3 * x", GOOD, wiring=True)
SURVIVES = Mutant("survives", FILE, "x + 1", "x + 2", GOOD)
IMPORT = Mutant("import", FILE, "def double", "def triple", GOOD)
HANGS = Mutant("hangs", FILE, "return 2 * x", "while True: pass", GOOD)
BROKEN = Mutant("broken", FILE, "2 * x", "3 * x", ("tests/test_numbers.py::test_broken",))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # most of the time of so small a run
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_small_project(project):
    """Killed by a test, by an import that fails; survived; and killed by what fails anyway, which is an error."""
    outcomes = tool.run([KILLED, SURVIVES, IMPORT, BROKEN], project, list(FILES), workers=1)
    found = {outcome.mutant.name: (outcome.verdict, outcome.by) for outcome in outcomes}
    assert found["killed"] == ("killed", "tests/test_numbers.py::test_double")
    assert found["survives"][0] == "survived"
    assert found["import"] == ("killed", "tests/test_numbers.py")
    assert found["broken"][0] == "error" and "test_broken fails without the mutant" in found["broken"][1]
    assert (project / FILE).read_text() == SOURCE


def test_a_hang_ends(project, tmp_path):
    copy = tool.Copy(tmp_path / "copy", project, list(FILES), tmp_path / "cache")
    assert copy.try_mutant(HANGS, limit=0.5).verdict == "killed by hang"
    assert (copy.tree / FILE).read_text() == SOURCE
    assert copy.try_mutant(KILLED, limit=120.0).verdict == "killed"
    copy.close()


def test_the_limit_is_ten_times_what_the_tests_take_without_the_mutant():
    seconds = {"tests/a.py::test_one": 3.0, "tests/a.py::test_two[x]": 9.0, "tests/a.py::test_two[y]": 20.0}
    made = tool.Baseline(seconds | {"tests/a.py::test_twofold": 70.0}, start=5.0)
    tests = ("tests/a.py::test_one", "tests/a.py::test_two")
    assert made.limit(KILLED._replace(tests=tests)) == 10 * (5 + 3 + 9 + 20)
    assert made.limit(KILLED._replace(tests=tests[:1])) == 120


def test_mutants_that_no_longer_fit_are_named(project):
    stale = [
        SURVIVES._replace(old="return"),
        KILLED._replace(old="4 * x"),
        KILLED,
        HANGS._replace(tests=("tests/test_numbers.py::test_gone",)),
        IMPORT._replace(file="gone.py"),
        BROKEN._replace(tests=()),
    ]
    found = problems(project, stale)
    assert found == [
        "survives: expected the old text once, found it 2 times in small_project/numbers.py",
        "killed: expected the old text once, found it 0 times in small_project/numbers.py",
        "killed: two mutants have this name",
        "hangs: expected a test tests/test_numbers.py::test_gone, found none",
        "import: expected the old text once, found it 0 times in gone.py, which does not exist",
        "broken: names no tests",
    ]


def test_a_seventh_a_day_is_all_of_them_in_a_week():
    """Every mutant is in exactly one part, and the parts are of nearly equal size."""
    rooms = {"one": (KILLED, IMPORT, HANGS), "two": (SURVIVES, BROKEN)}
    parts = [tool.choose(rooms, part=(number, 2)) for number in (0, 1)]
    assert sorted(mutant.name for part in parts for mutant in part) == sorted(
        mutant.name for of_room in rooms.values() for mutant in of_room
    )
    assert [len(part) for part in parts] == [3, 2]
    assert tool.choose(rooms, room="two") == [SURVIVES, BROKEN]
    assert tool.choose(rooms, only="*surv*") == tool.choose(rooms, only="surv") == [SURVIVES]


@pytest.mark.parametrize(("argument", "message"), [("8/7", "part"), ("7/7", "part"), ("x", "part"), ("0/0", "part")])
def test_parts_that_are_none_are_refused(argument, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mutants", f"--part={argument}"])
    with pytest.raises(SystemExit):
        tool.main()
    assert message in capsys.readouterr().err
