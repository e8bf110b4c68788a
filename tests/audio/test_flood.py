"""A slice of tools/flood_sounds.py, which anyone can run longer; and that it would notice."""

import importlib.util
import sys
from pathlib import Path

import pytest

from stepaudio_jax.audio import AudioError

TOOL = Path(__file__).parents[2] / "tools" / "flood_sounds.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("flood_sounds", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flood_sounds"] = module  # a new process finds what it is to do by its name
    spec.loader.exec_module(module)
    yield module
    del sys.modules["flood_sounds"]


def test_damaged_sounds_are_read_or_refused(tool, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    kinds = len(tool.sounds())
    report = tool.flood(0, range(0, 8 * kinds, 11))
    assert report.problems == []
    assert report.outcomes["sound"] > 50 and report.outcomes["refused"] > 50
    assert report.megabytes < tool.MAX_MEGABYTES


def test_every_way_is_gone_and_a_case_can_be_had_again(tool):
    kinds = len(tool.sounds())
    names = [tool.case(3, number)[0] for number in range(0, 8 * kinds, kinds)]
    assert {name.split(", ")[1].split(" and ")[0].rstrip(")") for name in names} == {way.__name__ for way in tool.WAYS}
    for number in (7, 8 * kinds - 1):
        name, data = tool.case(3, number)
        assert (name, data) == tool.case(3, number) and data != tool.case(4, number)[1]


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (AudioError("x: no"), "refused"),
        (AudioError("y: no"), "unexpected"),
        (AudioError("x: /tmp/tmpab12: no"), "unexpected"),
        (ValueError("x: no"), "unexpected"),
        (MemoryError(), "unexpected"),
    ],
)
def test_what_is_not_wanted(tool, monkeypatch, raised, outcome):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(tool, "load_audio_bytes", fail)
    assert tool.load(b"")[0] == outcome
