"""ctrl-C: everything that was started ends, and what may be left in the cloud is said."""

import os
import signal

import pytest

from .conftest import alive, until

JOB = ("--config", "c", "--workdir", "w")
CASES = {
    "create": ("create", 1, ("create.sh", "pod", "--type", "v4-8", "--zone", "z"), "launch/delete.sh pod --zone=z"),
    "create, queued": ("create", 1, ("create.sh", "pod", "--type", "v4-8", "--queued"), "delete.sh pod --queued"),
    "wait": ("describe", 1, ("wait.sh", "pod"), "launch/delete.sh pod"),
    "copying": ("scp", 1, ("install.sh", "pod"), "half installed"),
    "copying to slices": ("scp", 3, ("install.sh", "pod", "--slices", "3"), "half installed"),
    "installing": ("ssh", 1, ("install.sh", "pod"), "half installed"),
    "run": ("ssh", 2, ("run.sh", "pod", "--slices", "2", *JOB), "launch/stop.sh pod --slices=2"),
    "logs": ("ssh", 2, ("logs.sh", "pod", "--slices", "2", "--worker", "all"), "The job goes on"),
    "stop": ("ssh", 1, ("stop.sh", "pod"), "run this again"),
    "delete": ("delete", 1, ("delete.sh", "pod", "--yes"), "still be there and cost"),
    "watch, creating": ("create", 1, ("watch.sh", "pod", "--type", "v4-8", *JOB), "launch/delete.sh pod"),
    "watch, looking": ("ssh", 2, ("watch.sh", "pod", "--type", "v4-8", "--slices", "2", *JOB), "launch/delete.sh pod"),
}


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c(cloud, case):
    interrupt(cloud, *CASES[case], signal.SIGINT)


@pytest.mark.parametrize("case", ["create", "copying to slices", "watch, looking"])
def test_terminated(cloud, case):
    interrupt(cloud, *CASES[case], signal.SIGTERM)


def interrupt(cloud, where, calls, words, hint, send):
    if words[0] == "watch.sh":
        missing = where == "create"
        cloud.answer("describe", "" if missing else "ACTIVE\n", "NOT_FOUND\n" if missing else "", code=int(missing))
    for _ in range(calls):
        cloud.answer(where, hangs=True)
    process = cloud.start(*words)
    until(lambda: len(cloud.hanging()) == 2 * calls)
    os.killpg(process.pid, send)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + send
    assert err.splitlines()[-1].startswith(f"{words[0]}: stopped. ") and hint in err.splitlines()[-1]
    until(lambda: not any(alive(pid) for pid in cloud.hanging()))
    assert list(cloud.repo.glob(".git/*.tar.gz")) == []
    assert list(cloud.folder.parent.glob("stepaudio-launch.*")) == []
