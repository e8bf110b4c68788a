"""Options of a conversion reach what is written: sizes of shards, seeds, types of adapters, positions."""

import json

import numpy as np
import pytest

from checkpoints_convert import sources
from checkpoints_convert.command import main
from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.initialise import from_parts
from checkpoints_convert.peft import CONFIG, from_peft, to_peft
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints import layout
from stepaudio_jax.models import LoraConfig
from tests import small
from tests.checkpoints_convert.folders import assert_same_bits, released, tensors


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return released(tmp_path_factory.mktemp("released") / "hf", dtype="f32")


@pytest.fixture(scope="module")
def ours(hf):
    from_hf(str(hf), hf.parent / "ours")
    return hf.parent / "ours"


def test_shards_are_as_large_as_asked_for(hf, ours, tmp_path):
    """A tensor that is larger than a shard has one of its own."""
    assert main(["to-hf", str(ours), str(tmp_path / "back"), "--max-shard-size=100KB"]) == 0
    assert_same_bits(tensors(hf), tensors(tmp_path / "back"))
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())["weight_map"]
    sizes = {name: array.nbytes for name, array in tensors(hf).items()}
    for file in set(index.values()):
        held = [sizes[name] for name, where in index.items() if where == file]
        assert len(held) == 1 or sum(held) <= 100_000
    assert len(set(index.values())) >= sum(sizes.values()) // 100_000 // 2


def test_tensors_of_several_slabs(hf, tmp_path, monkeypatch):
    """Read and written some rows at a time, as a tensor of gigabytes is."""
    monkeypatch.setattr(sources, "SLAB_BYTES", 1 << 12)
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1 << 10)
    from_hf(str(hf), tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back")
    assert_same_bits(tensors(hf), tensors(tmp_path / "back"))


def test_yarn_reaches_the_model_that_is_loaded(ours):
    model, _ = checkpoints.load(ours, yarn_factor=4.0)
    plain, _ = checkpoints.load(ours)
    assert plain.config.decoder.rope_scaling is None
    scaling = model.config.decoder.rope_scaling
    assert scaling is not None and (scaling.rope_type, scaling.factor) == ("yarn", 4.0)
    assert model.config.decoder.max_position_embeddings == 4 * plain.config.decoder.max_position_embeddings


def test_rslora_goes_to_peft_and_back(ours, tmp_path):
    lora = LoraConfig(rank=4, alpha=6.0, targets=("q_proj",), rslora=True)
    model, tokenizer = checkpoints.load(ours)
    small.adapt(model, lora)
    checkpoints.save_adapters(tmp_path / "adapters", model, lora, tokenizer.backend.to_str(), base=ours)
    to_peft(tmp_path / "adapters", tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["use_rslora"] is True
    from_peft(tmp_path / "peft", tmp_path / "again", base=ours)
    found = checkpoints.load_adapters(tmp_path / "again")[2].lora
    assert found.rslora and found.scale == 6.0 / 2


def test_a_new_adaptor_has_its_seed(tmp_path):
    released(tmp_path / "parts", shape="parts")
    made = {}
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        from_parts(str(tmp_path / "parts" / "decoder"), str(tmp_path / "parts" / "encoder"), tmp_path / name, seed=seed)
        model, _ = checkpoints.load(tmp_path / name)
        made[name] = np.asarray(model.adaptor.linear1.kernel[...], np.float32)
    np.testing.assert_array_equal(made["one"], made["same"])
    assert np.any(made["one"] != made["two"])
