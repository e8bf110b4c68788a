"""What the tests of whole runs share."""

import pytest

from tests.training import runs


@pytest.fixture
def one_device(monkeypatch):
    """Runs use one device."""
    runs.on_devices(monkeypatch, 1)
