"""The supervisor with programs that fail, and worker.sh, which starts it."""

import os
import signal
import subprocess

import pytest

from .conftest import alive, children, until

FAST = ("--backoff=0", "--quick=60")


@pytest.fixture
def program(tmp_path):
    """Writes a program that counts its starts in the file it is given, then does as told by the count."""

    def write(then):
        path = tmp_path / "a program"
        count = 'echo >>"$1"; n=$(($(wc -l <"$1")))'
        path.write_text(f"#!/bin/sh\n{count}\n{then}\n")
        path.chmod(0o755)
        return str(path), str(tmp_path / "starts")

    return write


def starts(program):
    path = program[1]
    return len(open(path).readlines()) if os.path.exists(path) else 0


def test_crashes_are_tried_again(cloud, program):
    it = program('[ "$n" -lt 3 ] && exit 7; [ "$n" -lt 4 ] && kill -KILL $$; exit 0')
    exit_file = cloud.folder / "exit"
    code, out, _ = cloud.run("supervise.sh", *FAST, f"--exit-file={exit_file}", "--", *it)
    assert (code, starts(it), exit_file.read_text()) == (0, 4, "0\n")
    assert out.count("exit status 7; again in 0 s") == 2 and out.count("exit status 137; again") == 1
    assert out.endswith("] done\n")


def test_a_mistake_is_not_tried_again(cloud, program):
    it = program("exit 2")
    code, out, _ = cloud.run("supervise.sh", *FAST, "--", *it)
    assert (code, starts(it)) == (2, 1) and "not tried again" in out


def test_gives_up_after_quick_failures(cloud, program):
    it = program("exit 3")
    code, out, _ = cloud.run("supervise.sh", *FAST, "--max-quick=3", "--", *it)
    assert (code, starts(it)) == (3, 3) and "gave up after 3 quick failures" in out


def test_slow_failures_do_not_count(cloud, program):
    it = program('[ "$n" -gt 6 ] && exit 0; exit 3')
    assert cloud.run("supervise.sh", "--backoff=0", "--quick=0", "--max-quick=2", "--", *it)[0] == 0
    assert starts(it) == 7


def test_a_slow_failure_starts_the_count_again(cloud, program):
    slow = "for i in 1 2 3 4 5 6 7 8 9 10 11; do sleep 0.1; done"
    it = program(f'[ "$n" = 5 ] && exit 0; if [ "$n" = 3 ]; then {slow}; fi; exit 3')
    assert cloud.run("supervise.sh", "--backoff=0", "--quick=1", "--max-quick=3", "--", *it)[0] == 0
    assert starts(it) == 5


def test_the_pause_doubles(cloud, program):
    cloud.program("sleep", "exit 0")
    code, out, _ = cloud.run("supervise.sh", "--backoff=40", "--max-quick=6", "--", *program("exit 3"))
    assert code == 3
    assert [line.split("again in ")[1] for line in out.splitlines() if "again in" in line] == [
        "40 s", "80 s", "160 s", "300 s", "300 s",
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "name", "status"), [(signal.SIGTERM, "TERM", 143), (signal.SIGINT, "INT", 130)])
def test_signals_are_passed_on(cloud, program, tmp_path, number, name, status):
    it = program(f"trap 'echo saved; exit 0' {name}; while :; do tail -f /dev/null & wait; done")
    process = cloud.start("supervise.sh", *FAST, f"--exit-file={tmp_path / 'exit'}", "--", *it)
    until(lambda: starts(it) == 1)
    until(lambda: any("tail" in children(child).values() for child in children(process.pid)))
    process.send_signal(number)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == status and (tmp_path / "exit").read_text() == f"{status}\n"
    assert "saved\n" in out and f"ended by SIG{name}" in out and starts(it) == 1


def test_a_deaf_program_is_killed_with_its_children(cloud, program, tmp_path):
    it = program(f"trap '' TERM; tail -f /dev/null & echo $! >'{tmp_path}/left'; wait; wait")
    process = cloud.start("supervise.sh", "--grace=0.1", "--", *it)
    until(lambda: (tmp_path / "left").exists() and (tmp_path / "left").read_text())
    process.terminate()
    assert process.wait(timeout=600) == 143
    until(lambda: not alive(int((tmp_path / "left").read_text())))
    process.communicate()


def test_what_a_crash_leaves_behind_is_killed(cloud, program, tmp_path):
    it = program(f"[ $n = 2 ] && exit 0; tail -f /dev/null >/dev/null & echo $! >'{tmp_path}/left'; exit 1")
    assert cloud.run("supervise.sh", *FAST, "--", *it)[0] == 0
    until(lambda: not alive(int((tmp_path / "left").read_text())))


def test_a_signal_during_the_pause(cloud, program):
    it = program("exit 1")
    process = cloud.start("supervise.sh", "--backoff=100", "--", *it)
    until(lambda: starts(it) == 1)
    until(lambda: "sleep" in children(process.pid).values())
    process.terminate()
    assert process.wait(timeout=600) == 143 and starts(it) == 1
    process.communicate()


def test_mistakes(cloud):
    assert "no command after --" in cloud.run("supervise.sh")[2]
    assert "--max-quick: expected a whole number" in cloud.run("supervise.sh", "--max-quick=x", "--", "true")[2]


def worker(cloud, *words):
    """worker.sh as it lies on a worker."""
    command = ["bash", str(cloud.folder / "homes/pod-0/stepaudio/src/launch/worker.sh"), *words]
    done = subprocess.run(command, env=cloud.env, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def test_status(cloud):
    cloud.workers(1)
    (cloud.folder / "program").write_text('while [ ! -e "$HOME/end" ]; do tail -f /dev/null & wait; done\n')
    assert cloud.run("install.sh", "pod")[0] == 0
    job = cloud.folder / "homes/pod-0/stepaudio/run"

    def says():
        return worker(cloud, "status")[1].removeprefix("stepaudio here ").strip()

    assert says() == "absent"
    assert cloud.run("run.sh", "pod", "--config", "c", "--workdir", "w")[0] == 0
    assert says() == "running"
    assert "train --config=c --workdir=w" in (job / "log").read_text()
    os.kill(int((job / "pid").read_text()), signal.SIGTERM)  # as a machine that is shut down does
    until(lambda: (job / "exit").exists())
    until(lambda: says() == "absent")
    for status, word in (("0", "done"), ("2", "failed 2"), ("130", "absent"), ("143", "absent")):
        (job / "exit").write_text(f"{status}\n")
        assert says() == word
    (job / "stopped").touch()
    assert says() == "stopped"
    (job / "pid").write_text(f"{os.getpid()}\n")  # after a reboot the number may be another's
    assert says() == "stopped" and worker(cloud, "idle")[0] == 0
    (cloud.folder / "homes/pod-0/end").touch()
    assert cloud.run("run.sh", "pod", "--config", "c", "--workdir", "w")[0] == 0
    until(lambda: says() == "done")
    assert worker(cloud, "nothing")[0] == 2


def test_an_older_python_brings_uv(cloud):
    cloud.workers(1)
    assert cloud.run("install.sh", "pod")[0] == 0
    cloud.program("python3", 'echo "$@" >>"$FAKE/python"; case "$*" in -c*) exit 1 ;; *find*) echo /a/python ;; esac')
    (cloud.folder / "homes/pod-0/stepaudio/src/tools/setup_venv.sh").write_text('echo "$PYTHON" "$@" >"$FAKE/setup"')
    assert worker(cloud, "install")[0] == 0
    _, *calls = (cloud.folder / "python").read_text().splitlines()
    assert calls == ["-m pip install --quiet --user uv", "-m uv python install 3.12", "-m uv python find --system 3.12"]
    home = cloud.folder / "homes/pod-0/stepaudio"
    assert (cloud.folder / "setup").read_text() == f"/a/python {home}/venv tpu\n"
