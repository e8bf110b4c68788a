"""A run that is killed at any moment goes on and ends with the bits of a run that was not."""

import random
import time

import pytest

from tests.training import runs

STEPS = {"steps": 48, "eval_every": 13}


def kill_at_a_random_moment(workdir, chance: random.Random, **arguments) -> bool:
    """Starts a run (two processes if a port is needed) and kills it: while it starts, or some steps after.

    Returns whether it was killed, not done before.
    """
    count = arguments.pop("processes", 1)
    port = runs.free_port() if count > 1 else 0
    started = [runs.start(workdir, process=i, port=port, pause=0.02, **arguments) for i in range(count)]
    metrics = workdir / "metrics.jsonl"
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    steps = chance.choice([0, 2, 5, 8])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.is_alive() for process in started):
        seen = metrics.exists() and abs(len(metrics.read_text().splitlines()) - before)
        if seen is not False and seen >= steps:
            break
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.2 if steps else 1.0))
    chance.shuffle(started)
    for process in started:
        process.kill()
        process.join()
    return any(process.exitcode == -9 for process in started)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("truth")
    process = runs.start(workdir, changes=STEPS)
    process.join()
    assert process.exitcode == 0
    return workdir


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(truth, times, tmp_path):
    chance = random.Random(times)
    kills = sum(kill_at_a_random_moment(tmp_path, chance, changes=STEPS) for _ in range(times))
    last = runs.start(tmp_path, changes=STEPS)
    last.join()
    assert last.exitcode == 0 and kills >= times / 2  # the later ones may find a run that has ended
    runs.same_to_the_bit(tmp_path, truth)
    assert runs.batches(tmp_path) == runs.batches(truth)
    assert [line["step"] for line in runs.lines(tmp_path)] == list(range(1, 49))


@pytest.mark.slow
def test_two_processes_are_killed_and_go_on_as_two_and_as_one(tmp_path):
    """As two: to the bit. As one: the same batches in the same order, the same losses to rounding."""
    port = runs.free_port()
    both = [runs.start(tmp_path / "truth", changes=STEPS, process=i, port=port) for i in (0, 1)]
    assert [process.join() or process.exitcode for process in both] == [0, 0]
    chance = random.Random(1)
    for workdir, last in ((tmp_path / "two", 2), (tmp_path / "one", 1)):
        workdir.mkdir()
        while not (workdir / "checkpoints" / "000004").exists():
            assert kill_at_a_random_moment(workdir, chance, changes=STEPS, processes=2)
        port = runs.free_port() if last == 2 else 0
        again = [runs.start(workdir, changes=STEPS, process=i, port=port) for i in range(last)]
        assert {process.join() or process.exitcode for process in again} == {0}
    runs.same_to_the_bit(tmp_path / "two", tmp_path / "truth")
    for process in (0, 1):
        assert runs.batches(tmp_path / "two", process) == runs.batches(tmp_path / "truth", process)
    one, two = (runs.lines(tmp_path / name) for name in ("one", "truth"))
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-5)
