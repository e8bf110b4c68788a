"""Whether this machine can confine programs, asked once."""

import pytest

from stepaudio_jax.rl.rewards import SandboxError
from stepaudio_jax.rl.rewards.sandbox import run


@pytest.fixture(scope="session")
def needs_a_sandbox():
    try:
        run("", seconds=5)
    except SandboxError as error:
        pytest.skip(f"programs cannot be confined here: {error}")
