"""Whether this machine can confine programs, asked once; and runs on one device, which compile in half the time."""

import jax
import pytest

from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl import stage as rl_stage
from stepaudio_jax.rl.rewards import SandboxError
from stepaudio_jax.rl.rewards.sandbox import run
from stepaudio_jax.training import loop as training_loop


@pytest.fixture(scope="session")
def needs_a_sandbox():
    try:
        run("", seconds=5)
    except SandboxError as error:
        pytest.skip(f"programs cannot be confined here: {error}")


@pytest.fixture
def one_device(monkeypatch):
    """For what does not go by the mesh: the runs of this test have the first device alone."""
    for module in (rl_stage, training_loop):
        monkeypatch.setattr(module, "make_mesh", lambda axes, *devices: make_mesh(axes, jax.devices()[:1]))
