"""Being told to stop: at once where there is nothing to lose, else after the step; the second time at once."""

import os
import signal
import threading
import time

import pytest

from tests.training import runs

LONG = {"steps": 500, "eval_every": 1000, "checkpoints.save_every": 400}


def wait_for_steps(workdir, steps: int, process) -> None:
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert process.is_alive()
        time.sleep(0.01)


def saved(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("0*[0-9]"))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_leaves(number, code, tmp_path):
    process = runs.start(tmp_path, changes=LONG, pause=0.05)
    wait_for_steps(tmp_path, 2, process)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    (step,) = saved(tmp_path)
    assert step < 400 and [line["step"] for line in runs.lines(tmp_path)][-1] == step
    assert f"stopped by {signal.Signals(number).name} after step {step}" in runs.lines(tmp_path, "event")[-1]["event"]


def test_a_signal_before_the_first_step_leaves_at_once(tmp_path, capfd):
    process = runs.start(tmp_path, changes=LONG, pause=60.0)  # it would wait a minute for its first batch
    while not (tmp_path / "config.json").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(600)
    assert process.exitcode == 143 and saved(tmp_path) == []


def test_a_wait_for_data_is_broken_off(tmp_path):
    """And the state of the step before it saved: the batch that did not come is not counted as seen."""
    process = runs.start(tmp_path, changes=LONG, pause=(0.0, 60.0))  # from the third batch on
    while runs.given(tmp_path) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    process.join(600)
    assert process.exitcode == 143 and saved(tmp_path) == [2]
    again = runs.start(tmp_path, changes=LONG | {"steps": 4}, allow_change=["steps"])
    again.join()
    assert again.exitcode == 0
    assert [line["step"] for line in runs.lines(tmp_path)] == [1, 2, 3, 4]
    assert len(runs.batches(tmp_path)) == 4


def test_an_evaluation_is_broken_off_and_made_up_for(tmp_path):
    """The checkpoint is there before the evaluation, which the next start begins with."""
    changes = LONG | {"eval_every": 3, "steps": 4}
    process = runs.start(tmp_path, changes=changes, slow_look=60.0)
    while not (tmp_path / "looking").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(600)
    assert process.exitcode == 143 and saved(tmp_path) == [3] and runs.lines(tmp_path, "norm") == []
    again = runs.start(tmp_path, changes=changes)
    again.join()
    assert again.exitcode == 0
    assert [line["step"] for line in runs.lines(tmp_path, "norm")] == [3]


def test_the_second_signal_leaves_at_once(tmp_path):
    """Also where Python's own handlers do not run, since the main thread is in compiled code."""
    process = runs.start(tmp_path, changes=LONG, pause=(0.0, 60.0), deaf=True)
    while runs.given(tmp_path) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert process.exitcode == 130


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    """As before a preemption. What they go on to is what an uninterrupted run comes to (test_resume)."""
    port = runs.free_port()
    both = [runs.start(tmp_path, changes=LONG, process=i, port=port, pause=0.05) for i in (0, 1)]
    wait_for_steps(tmp_path, 2, both[0])
    os.kill(both[1].pid, signal.SIGTERM)
    assert [process.join(600) or process.exitcode for process in both] == [143, 143]
    (step,) = saved(tmp_path)
    assert step < 400 and [line["step"] for line in runs.lines(tmp_path)][-1] == step


def test_a_profile_on_demand(tmp_path):
    process = runs.start(tmp_path, changes=LONG, pause=0.05)
    wait_for_steps(tmp_path, 2, process)
    os.kill(process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("profile/**/*.xplane.pb")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(600)
    assert list(tmp_path.glob("profile/**/*.xplane.pb")) and process.exitcode == 143


def test_handlers_are_given_back_and_other_threads_hear_nothing():
    from stepaudio_jax.training.signals import Interrupts

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Interrupts() as interrupts:
        interrupts.nothing_to_lose = False
        assert interrupts.stop_after(1) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.stop_after(2).exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    thread = threading.Thread(target=lambda: Interrupts().__enter__().__exit__())
    thread.start()
    thread.join()
