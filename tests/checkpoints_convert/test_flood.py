"""A small slice of the flood of broken folders (tools/flood_checkpoints.py), and the flood: does it see faults?"""

import sys
from pathlib import Path

import pytest

from stepaudio_jax import cli

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import broken_checkpoints
import flood_checkpoints


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("flood")
    broken_checkpoints.make_folders(path)
    return path


def test_a_slice_of_the_flood(root):
    cases = 4 * len(broken_checkpoints.FAMILIES)
    results = [flood_checkpoints.run_case(root, seed=0, case=case) for case in range(cases)]
    assert [result for result in results if result.wrong] == []
    assert {result.code for result in results} == {0, 2}


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        (lambda argv: 1 / 0, "Traceback: ZeroDivisionError"),
        (lambda argv: 0, "exit code 0 where it should be refused"),
        (lambda argv: 1, "exit code 1 where it should be refused"),
        (lambda argv: 2, "said 0 lines"),
        (lambda argv: print("\n" * 50, file=sys.stderr) or 2, "said 51 lines"),
        (lambda argv: print("x" * 10**5, file=sys.stderr) or 2, "said 1 lines"),
        (lambda argv: Path(argv[-1] + ".unfinished").mkdir() or print("no", file=sys.stderr) or 2, "left ['made.unfin"),
        (lambda argv: __import__("time").sleep(30) or 2, "took more than"),
    ],
)
def test_the_flood_sees_faults(root, monkeypatch, command, wrong):
    monkeypatch.setattr(cli, "main", command)
    monkeypatch.setattr(flood_checkpoints, "LIMIT", 0.3)
    assert wrong in flood_checkpoints.run_case(root, seed=0, case=0).wrong


def test_the_flood_counts_a_process_that_dies(root, monkeypatch, tmp_path):
    dying = tmp_path / "dying.py"
    dying.write_text("import os\nos.abort()\n")
    monkeypatch.setattr(flood_checkpoints, "__file__", str(dying))
    assert [result.wrong for result in flood_checkpoints.flood(root, 0, 1)] == ["crashed with exit code -6"]
