"""RLVR moves the shipped model: the three-minute cell of benchmarks/rl_effects.py, one seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
def test_rewards_raise_held_out_accuracy(tmp_path):
    """At a temperature at which it is right some 60 % of the time; compiled as users do, for speed is what takes the
    time here."""
    command = [sys.executable, "-m", "benchmarks.rl_effects", "--only", "hot", "--seeds", "0", "--per-kind", "60"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    subprocess.run([*command, "--workdir", tmp_path], cwd=REPO, env=environment, check=True, timeout=3600)
    found = json.loads((tmp_path / "hot" / "seed_0" / "done.json").read_text())
    assert 0.3 < found["before"] < 0.8
    assert found["after"] - found["before"] >= 0.1
