"""Reward functions for the tests of the runner: sound ones, and each kind of bad one. Workers find them by name.

A module like a user's: it knows only what the package exports.
"""

import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from stepaudio_jax.rl.rewards import register


@register("tests-half", lowest=0.0, highest=1.0)
def half(sample):
    return 0.5


def misbehave(sample):
    """Does what the truth says, of a function below; else gives it as it is."""
    return globals()[sample.truth](sample) if isinstance(sample.truth, str) else sample.truth


def hang(sample):
    while True:
        time.sleep(60)


def hang_in_c(sample):
    """Holds the interpreter's lock: no thread of Python's could end it."""
    return re.match(r"(a+)+$", "a" * 60 + "b") is None


def exit_at_once(sample):
    os._exit(3)


def exit_politely(sample):
    sys.exit("done with it")


def crash(sample):
    ctypes.string_at(0)


def raise_error(sample):
    raise KeyError("no such column")


def raise_long(sample):
    raise ValueError("\ud800 long " * 1_000_000)


def raise_unprintable(sample):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError

    raise Unprintable


def take_memory(sample):
    return len(bytearray(1 << 40))


def write_much(sample):
    for _ in range(1000):
        print("x" * 100_000)
    return 0.25


def fork_and_return(sample):
    """A child that comes back where only its parent should."""
    if os.fork() == 0:
        raise ValueError("I am the child")
    os.wait()
    return 0.75


def _start_a_child(sample):
    """Writes its number into the file of the column `child`, if there is one."""
    child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if "child" in sample.extra:
        Path(sample.extra["child"]).write_text(str(child.pid))


def leave_a_child(sample):
    _start_a_child(sample)
    os._exit(0)


def hang_beside_a_child(sample):
    _start_a_child(sample)
    hang(sample)


def imported(sample):
    """1 where the worker process has imported what the truth of `extra` names."""
    return sample.extra["module"] in sys.modules


def number_of_process(sample):
    return os.getpid()


def hears_nothing(prompts, sampled):
    """A judge for whom no reply is grounded."""
    from stepaudio_jax.rl.grounding import Verdict

    return [Verdict(False, True) for _ in sampled]


def always_right(sample):
    """An accuracy that looks at nothing, not even whether the reply was cut off."""
    return 1.0
