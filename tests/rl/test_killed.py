"""Killed with SIGKILL in every phase of an update, an RL run ends with the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys

import pytest

OPTIONS = ("init=tiny", "steps=2", "rl.prompts=2", "rl.samples=2", "rl.rows=4", "rl.sound_rows=4",
           "rl.critic_minibatches=1", "rl.max_new_tokens=48", "rl.engine.max_rows=4", "optim.warmup_steps=1",
           "critic_optim.warmup_steps=1", "checkpoints.save_every=1", "prompts.miniature.max_events=2")  # fmt: skip

PROGRAM = """
import functools, os, signal, sys, threading
from stepaudio_jax.checkpoints import RunCheckpoints
from stepaudio_jax.rl import loop, ppo, rollout
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.rl.scoring import score
from stepaudio_jax.training import read_config

folder, phase, *options = sys.argv[1:]
calls = {}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dies(module, name, at, *, after=False):
    # At its at-th call the process is gone: before anything is done, or right after.
    does = getattr(module, name)
    def wrapped(*args, **kwargs):
        calls[name] = calls.get(name, 0) + 1
        if calls[name] == at and not after:
            die()
        done = does(*args, **kwargs)
        if calls[name] == at and after:
            die()
        return done
    setattr(module, name, wrapped)

if phase == "rollout":  # in the second update, with some replies in the journal
    dies(rollout, "_append", 7)
elif phase == "reward":
    dies(sys.modules["stepaudio_jax.rl.scoring"], "score", 1, after=True)
    score = sys.modules["stepaudio_jax.rl.scoring"].score
elif phase == "learn":  # the weights have changed, and nothing of it is saved
    dies(ppo, "update", 1, after=True)
elif phase == "checkpoint":  # while it is being written
    saves = RunCheckpoints.save
    def save(self, *args, **kwargs):
        threading.Timer(0.02, die).start()
        saves(self, *args, **kwargs)
        self.wait()
        die()
    RunCheckpoints.save = save
with RewardRunner() as runner:
    config = read_config("configs/rlvr_tiny.py", [f"--config.{each}" for each in options])
    loop.train(config, folder, functools.partial(score, runner))
"""


def run(folder, phase=""):
    """Its exit code, and the end of what it said."""
    # One device: this is about what lies on the disk.
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, str(folder), phase, *OPTIONS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    return done.returncode, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_in_every_phase(tmp_path):
    code, said = run(tmp_path / "whole")
    assert code == 0, said
    for phase in ("rollout", "reward", "learn", "checkpoint"):
        code, said = run(tmp_path / "other", phase)
        assert code == -signal.SIGKILL, (phase, said)
    code, said = run(tmp_path / "other")
    assert code == 0, said
    ends = [json.loads((tmp_path / name / "checkpoints/000002/run.json").read_text()) for name in ("whole", "other")]
    assert ends[0]["checksums"] == ends[1]["checksums"]
