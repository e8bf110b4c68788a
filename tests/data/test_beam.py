"""The Beam variant of data build writes the records that `data build` writes, in the same order.

Skipped where the extra `beam` is not installed: apache-beam keeps other packages of an environment from being new, so
it is not among those of `dev`.
"""

import json
import sys

import numpy as np
import pytest
import soundfile

from stepaudio_jax import checkpoints
from stepaudio_jax.data import beam, build
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.data.think_incomplete import ThinkIncomplete

TINY = str(checkpoints.resolve("tiny"))


@pytest.fixture
def source(tmp_path):
    """100 records, every eleventh one bad."""
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000) / 10), 16000)
    lines = []
    for i in range(100):
        reply = f"<think>One.\n\nTwo.\n\nThree.</think>It is {i}." + " More." * i
        messages = [{"role": "user", "content": f"<audio>What, {i}?"}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"messages": messages, "audios": ["a.wav" if i % 11 else "nowhere.wav"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize("transform", [None, ThinkIncomplete(seed=1, copies=2)])
def test_the_same_records_as_data_build(source, tmp_path, transform):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    recipe = Recipe(TINY, transform=transform)
    info = beam.build([source], tmp_path / "beam", recipe, records_per_piece=7, num_shards=3)
    expected = build.build([source], tmp_path / "ours", recipe, records_per_shard=7, workers=1)
    ours, theirs = StoredDataset(tmp_path / "ours"), StoredDataset(tmp_path / "beam")
    assert len(info["shards"]) == 3 and len(ours) == len(theirs) == 90 * (2 if transform else 1)
    assert [ours.read(i) for i in range(len(ours))] == [theirs.read(i) for i in range(len(ours))]
    for name in ("tokens", "rejected_tokens", "units", "kind"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert info | {"shards": []} == expected | {"shards": []}
    assert (tmp_path / "beam" / "bad.jsonl").read_text() == (tmp_path / "ours" / "bad.jsonl").read_text()


def test_without_beam_it_says_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r'apache_beam is not installed: pip install "stepaudio-jax\[beam\]"'):
        beam.build([source], tmp_path / "out", Recipe(TINY))
    assert not (tmp_path / "out").exists()
