"""Whether this machine can confine programs, asked once; and one runner of rewards for all."""

import pytest

from stepaudio_jax.rl.rewards import RewardRunner, SandboxError
from stepaudio_jax.rl.rewards.sandbox import run


@pytest.fixture(scope="session")
def needs_a_sandbox():
    try:
        run("", seconds=60)
    except SandboxError as error:
        pytest.skip(f"programs cannot be confined here: {error}")


@pytest.fixture(scope="session")
def runner():
    """Scores with the registered rewards, as a run does."""
    with RewardRunner() as made:
        yield made
