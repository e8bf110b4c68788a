"""What the tests of whole runs share."""

import pytest

from tests.training import runs


@pytest.fixture
def one_device(monkeypatch):
    """Runs use one device, and compile once what several of them compile."""
    runs.on_devices(monkeypatch, 1)
    runs.cache_compilations()
    yield
    runs.cache_compilations(False)
