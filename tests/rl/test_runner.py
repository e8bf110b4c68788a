"""The runner: whatever a reward does is that sample's error, the others are scored, and no process stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from stepaudio_jax.rl.rewards import Reward, RewardRunner, Sample, Scored, pool, register, summarise, to_arrays
from tests.rl.processes import alive, descendants, own_descendants, wait_for

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MISBEHAVE = "tests.rl.functions:misbehave"


def sample(truth, answer="dog", **extra) -> Sample:
    return Sample("I hear it.", answer, True, False, truth, extra)


@register("tests-local", cheap=True)
def local(sample):
    return {"raise": lambda: 1 / 0, "text": lambda: "0.8", "nan": lambda: np.nan}.get(sample.truth, lambda: 0.8)()


@register("tests-bounded", lowest=-1.0, highest=1.0, cheap=True)
def bounded(sample):
    return sample.truth


@pytest.fixture(scope="module")
def runner():
    with RewardRunner(workers=2, memory=2 << 30) as runner:
        yield runner


BAD = {  # what the reward does: the beginning of the error
    "hang": "hung: no value within 1 s",
    "hang_in_c": "hung: no value within 1 s",
    "exit_at_once": "died: the reward's process ended with exit status 3",
    "exit_politely": "raised: SystemExit: done with it",
    "crash": "died: the reward's process ended with signal SIGSEGV",
    "leave_a_child": "died: the reward's process ended with exit status 0",
    "raise_error": "raised: KeyError: 'no such column'",
    "raise_long": "raised: ValueError: \\ud800 long",
    "raise_unprintable": "raised: Unprintable: its message cannot be made",
    "take_memory": "raised: MemoryError",
}
GARBAGE = [None, [0.5], {}, 1j, b"1", float("nan"), float("inf"), 1e39, 10**400, np.zeros(2)]


def test_what_a_bad_reward_does_is_its_own_sample_s_error(runner):
    truths = []
    for number, bad in enumerate(BAD):
        truths += [bad, 0.8, float(number)]  # sound ones between them
    begin = time.monotonic()
    scored = runner.score([sample(truth) for truth in truths], Reward(MISBEHAVE, seconds=1.0))
    assert time.monotonic() - begin < 150
    for bad, got in zip(BAD, scored[::3], strict=True):
        assert got.value is None and got.error is not None and got.error.startswith(BAD[bad]), got
        assert len(got.error) < 8000 and got.error.encode()
    assert [each.value for each in scored[1::3]] == [0.8] * len(BAD)
    assert [each.value for each in scored[2::3]] == list(range(len(BAD)))
    values, valid = to_arrays(scored)
    assert values[1] == np.float32(0.8) and valid.sum() == 2 * len(BAD)
    (summary,) = summarise(scored, MISBEHAVE)
    assert summary.errors == {"died": 3, "hung": 2, "raised": 5} and summary.n == len(truths)


def test_garbage_is_an_error_and_numbers_of_any_type_are_values(runner):
    for got in runner.score([sample(truth) for truth in GARBAGE], MISBEHAVE):
        assert got.kind == "garbage" and "expected a finite number" in got.error
    numbers = [True, 3, 0.8, np.float32(0.5), np.int64(2), np.bool_(True)]
    assert [each.value for each in runner.score([sample(n) for n in numbers], MISBEHAVE)] == [1, 3, 0.8, 0.5, 2, 1]


def test_values_out_of_the_stated_bounds_are_garbage(runner):
    scored = runner.score([sample(value) for value in (-1, 1, 1.01, -7)], "tests-bounded")
    assert [each.value for each in scored] == [-1, 1, None, None]
    assert scored[2] == Scored(None, "garbage: tests-bounded: expected a finite number from -1.0 to 1.0, found 1.01")
    scored = runner.score([sample(2), sample(1)], Reward("audio", {"accuracy": "tests-bounded"}))
    assert scored[0].kind == "garbage" and scored[1] == Scored(1.0)


def test_cheap_rewards_run_in_this_process(runner):
    scored = runner.score([sample(truth) for truth in ("raise", "text", "nan", "")], "tests-local")
    assert [each.kind for each in scored] == ["raised", "garbage", "garbage", None] and scored[3].value == 0.8
    assert scored[0].error == "raised: ZeroDivisionError: division by zero"
    with RewardRunner() as fresh:
        before = own_descendants() if sys.platform == "linux" else set()
        scored = fresh.score([sample("dog"), sample("cat")], Reward("audio", {"accuracy": "exact"}))
        assert scored == [Scored(1.0), Scored(0.2)]
        assert sys.platform != "linux" or own_descendants() == before  # nothing was started


def test_each_sample_may_have_its_own_reward(runner):
    samples = [sample("dog"), sample("1/2", "\\boxed{0.5}"), sample("", "x"), sample("B", "(B)"), sample("x", "y")]
    audio = Reward("audio", {"accuracy": "maths"})
    assert runner.score(samples, ["exact", audio, "maths", "choice", MISBEHAVE])[:2] == [Scored(1.0), Scored(1.0)]
    kinds = [each.kind for each in runner.score(samples, ["exact", audio, "maths", "choice", MISBEHAVE])]
    assert kinds == [None, None, "raised", None, "raised"]
    assert runner.score([], "maths") == []


@pytest.mark.parametrize(
    "rewards, complaint",
    [
        ("exakt", "did you mean"),
        (["exact"], "rewards: expected one for all or one for each of 2 samples, found 1"),
        (["exact", "code"], "expected allow_code=True"),
        (Reward("__main__:f"), "__main__ has no f"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is(runner, rewards, complaint):
    with pytest.raises(ValueError, match=complaint):
        runner.score([sample("dog"), sample("dog")], rewards)


@pytest.mark.parametrize("field", ["workers", "memory", "batch_seconds"])
def test_sizes_of_a_runner(field):
    with pytest.raises(ValueError, match=f"{field}: expected more than 0, found 0"):
        RewardRunner(**{field: 0})


def test_workers_are_kept_and_hold_no_jax(runner):
    assert "jax" in sys.modules and jax  # here it is
    ask = Reward("tests.rl.functions:imported")
    assert runner.score([sample(0, module=name) for name in ("jax", "numpy", "json")], ask)[0] == Scored(0.0)
    who = "tests.rl.functions:number_of_process"
    first, second = ({each.value for each in runner.score([sample(0)] * 8, who)} for _ in range(2))
    assert second <= first and len(first) <= 2 and os.getpid() not in first


def test_order_is_that_of_the_samples(runner):
    values = np.random.default_rng(0).permutation(300).tolist()
    assert [each.value for each in runner.score([sample(value) for value in values], MISBEHAVE)] == values


def test_large_and_odd_text_gets_through(runner):
    samples = [sample("write_much"), sample(0.5, "\ud800\0你好🎧" * 500_000, odd={"\n": (1, None)}), sample(0.25)]
    assert [each.value for each in runner.score(samples, MISBEHAVE)] == [0.25, 0.5, 0.25]


def test_what_cannot_be_sent_is_an_error(runner):
    scored = runner.score([sample(lambda: 0), sample(0.5), sample(threading.Lock())], MISBEHAVE)
    assert [each.kind for each in scored] == ["unsendable", None, "unsendable"]


@LINUX
def test_a_fork_that_comes_back_does_not_speak(runner):
    samples = [sample("fork_and_return"), *(sample(value / 8) for value in range(8))]
    assert [each.value for each in runner.score(samples, MISBEHAVE)] == [0.75, *(value / 8 for value in range(8))]


def test_a_batch_ends_in_time():
    with RewardRunner(workers=2, batch_seconds=2.0) as runner:
        begin = time.monotonic()
        scored = runner.score([sample(0.5), *[sample("hang")] * 50, sample("dog")], [MISBEHAVE] * 51 + ["exact"])
        assert time.monotonic() - begin < 60
        assert scored[0].value in (0.5, None) and scored[51] == Scored(1.0)
        assert {each.error for each in scored[1:51]} == {"hung: the time for the whole batch was over"}
        assert runner.score([sample(0.5)], MISBEHAVE) == [Scored(0.5)]  # and it goes on


def test_two_runners_at_once():
    results = {}

    def work(name, values):
        with RewardRunner(workers=1) as runner:
            samples = [sample(value) for value in values] + [sample("exit_at_once")]
            results[name] = [each.value for each in runner.score(samples, MISBEHAVE)]

    ranges = {"a": range(100), "b": range(100, 200)}
    threads = [threading.Thread(target=work, args=pair) for pair in ranges.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [*values, None] for name, values in ranges.items()}


def test_workers_outlive_the_thread_that_first_used_them():
    with RewardRunner(workers=1) as runner:
        found = []
        for _ in range(2):
            ask = threading.Thread(
                target=lambda: found.extend(runner.score([sample(0)], "tests.rl.functions:number_of_process"))
            )
            ask.start()
            ask.join()
        assert found[0] == found[1] and found[0].value


def test_a_worker_that_died_idle_is_replaced(runner):
    who = "tests.rl.functions:number_of_process"
    for process in {each.value for each in runner.score([sample(0)] * 8, who)}:
        os.kill(int(process), signal.SIGKILL)
    time.sleep(0.05)
    assert all(each.value for each in runner.score([sample(0)] * 8, who))


# No process stays


@LINUX
def test_no_process_is_left_of_a_bad_reward_or_after_close(tmp_path):
    before = own_descendants()
    bad = [sample(what, child=str(tmp_path / what)) for what in ("leave_a_child", "hang_beside_a_child")]
    with RewardRunner(workers=2) as runner:
        scored = runner.score([*bad, sample(0.5)], Reward(MISBEHAVE, seconds=1.0))
        assert [each.kind for each in scored] == ["died", "hung", None]
        children = {int(path.read_text()) for path in tmp_path.iterdir()}
        assert len(children) == 2
        wait_for(lambda: not alive(children))
        started = own_descendants() - before
        assert started
    wait_for(lambda: not alive(started))
    assert own_descendants() <= before
    runner.close()
    with pytest.raises(RuntimeError, match="is closed"):
        runner.score([sample(0.5)], MISBEHAVE)


PROGRAM = """
import signal, sys
from stepaudio_jax.rl.rewards import pool
from stepaudio_jax.rl.rewards import Reward, RewardRunner, Sample
signal.signal(signal.SIGINT, signal.default_int_handler)
def sample(truth, answer="x"):
    return Sample("", answer, True, False, truth)
runner = RewardRunner(workers=2, allow_code=True)
misbehave = "tests.rl.functions:misbehave"
if sys.argv[1] == "forgets":
    print(runner.score([sample(0.5), sample(0.25)], misbehave))
else:
    code = sample([{"stdout": "x"}], "while True: pass")
    runner.score([sample("hang_in_c"), code], [Reward(misbehave, seconds=100), "code"])
"""


@LINUX
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_one_that_scores(end, tmp_path, needs_a_sandbox):
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # where a killed one leaves its folder
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "hangs"], stderr=subprocess.PIPE, env=environment)
    try:  # two workers, and what the model wrote
        started = wait_for(lambda: found if len(found := descendants(process.pid)) == 3 else None, 30)
        time.sleep(0.3)
        process.send_signal(end)
        process.communicate(timeout=600)
        wait_for(lambda: not alive(started))
    finally:
        process.kill()


@LINUX
def test_a_program_may_forget_to_close():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "forgets"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "value=0.25" in done.stdout and not done.stderr


def test_workers_that_do_not_start_are_no_sample_s_error(monkeypatch, capfd):
    monkeypatch.setattr(pool, "_PROGRAM", "raise SystemExit('no room')")
    with RewardRunner(workers=1) as runner, pytest.raises(RuntimeError, match="3 in a row did not start"):
        runner.score([sample(0.5)], MISBEHAVE)
    assert "no room" in capfd.readouterr().err
