"""Checkpoints of adapters: what is read is what was trained, in its base and only there."""

import json
import math
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints import CheckpointError
from stepaudio_jax.models import LoraConfig, merge_lora
from stepaudio_jax.parallel import ShardingRules, make_mesh
from tests import small

LORA = LoraConfig(rank=3, targets=("q_proj", "down_proj"))


def state(model):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def same(first, second):
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path], err_msg=str(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path, tokenizer, model = tmp_path_factory.mktemp("saved"), small.tokenizer().backend.to_str(), small.adapted(LORA)
    checkpoints.save(path / "base", small.model(), tokenizer)
    rest = {"base": path / "base", "generation": {"max_new_tokens": 7}}
    checkpoints.save_adapters(path / "adapters", model, LORA, tokenizer, **rest)
    return path, model


@pytest.fixture
def folders(saved, tmp_path):
    """A base and adapters of it, and the model that both together are."""
    path, model = saved
    base, adapters = (shutil.copytree(path / name, tmp_path / name) for name in ("base", "adapters"))
    about = json.loads((adapters / "lora.json").read_text())
    (adapters / "lora.json").write_text(json.dumps(about | {"base": str(base)}))
    return base, adapters, nnx.clone(model)


def test_adapters_come_back_beside_their_base_and_merged_into_it(folders):
    _, adapters, model = folders
    found, tokenizer, about = checkpoints.load_adapters(adapters)
    assert about.lora == LORA and tokenizer.vocab_size == small.tokenizer().vocab_size
    same(state(found), state(model))
    merged, _ = checkpoints.load(adapters)
    merge_lora(model)
    same(state(merged), state(model))
    assert not list((adapters / "params").glob("*embed*")) and (adapters / "generation_config.json").exists()


def test_modules_trained_as_a_whole_are_kept_too(folders, tmp_path):
    base, _, model = folders
    nnx.update(model.adaptor, jax.tree.map(lambda x: x + 1, nnx.state(model.adaptor, nnx.Param)))
    checkpoints.save_adapters(
        tmp_path / "both", model, LORA, small.tokenizer().backend.to_str(), base=base, modules=("adaptor",)
    )
    found, _, about = checkpoints.load_adapters(tmp_path / "both")
    assert about.modules == ("adaptor",)
    same(state(found), state(model))


def test_each_device_gets_its_part(folders):
    _, adapters, model = folders
    rules = ShardingRules(make_mesh({"fsdp": 4, "tensor": 2}))
    found, _ = checkpoints.load(adapters, placement=rules.sharding)
    kernel = found.decoder.layers.down_proj.kernel
    assert {shard.data.shape for shard in kernel[...].addressable_shards} == {(2, 24, 8)}
    merge_lora(model)
    np.testing.assert_allclose(kernel[...], model.decoder.layers.down_proj.kernel[...], rtol=1e-6, atol=1e-7)


def test_adapters_stay_float32_beside_a_served_base(folders):
    _, adapters, _ = folders
    found, _, _ = checkpoints.load_adapters(adapters, dtype=jnp.bfloat16)
    assert found.decoder.layers.q_proj.lora.a.dtype == jnp.float32
    assert found.decoder.layers.q_proj.kernel.dtype == found.adaptor.linear1.kernel.dtype == jnp.bfloat16


def test_a_base_that_is_missing_or_changed(folders):
    base, adapters, _ = folders
    base.rename(base.parent / "elsewhere")
    with pytest.raises(CheckpointError, match=r'lora.json: its base .*base is not there; put it back, or name'):
        checkpoints.load(adapters)
    about = json.loads((adapters / "lora.json").read_text())
    (adapters / "lora.json").write_text(json.dumps(about | {"base": str(base.parent / "elsewhere")}))
    checkpoints.load(adapters)  # a copy is as good
    other = small.model(seed=0)
    other.decoder.layers.q_proj.kernel.set_value(other.decoder.layers.q_proj.kernel[...] * 1.01)
    checkpoints.save(base.parent / "elsewhere", other, small.tokenizer().backend.to_str(), overwrite=True)
    with pytest.raises(CheckpointError, match="has other weights than the adapters were trained beside"):
        checkpoints.load(adapters)


@pytest.mark.parametrize(
    "change",
    [{"lora": {"rank": "many"}}, {"lora": {"ranks": 3}}, {"modules": 1}]
    + [{"lora": {"rank": rank}} for rank in (True, 2.5, None, 10**9, [3])]
    + [{"lora": {"rank": 3, "alpha": alpha}} for alpha in (True, "1", None, math.nan, math.inf, 10**400)]
    + [{"lora": {"rank": 3} | change} for change in ({"rslora": 1}, {"targets": "q_proj"}, {"targets": [1]})]
    + [{"lora": []}, {"modules": "decoder"}, {"modules": [1]}, {"base": None}, {"base": ["x"]}, {"fingerprint": 3}],
)
def test_a_description_that_is_none(folders, change):
    _, adapters, _ = folders
    about = json.loads((adapters / "lora.json").read_text())
    (adapters / "lora.json").write_text(json.dumps(about | change))
    with pytest.raises(CheckpointError, match=r"lora.json: not a description of adapters"):
        checkpoints.load(adapters)


@pytest.mark.parametrize("text", ["[]", "{", '{"a":' * 100_000])
def test_a_description_that_is_no_object(folders, text):
    _, adapters, _ = folders
    (adapters / "lora.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lora.json: not a description of adapters"):
        checkpoints.load(adapters)


def test_bases_that_lead_back(folders):
    """Adapters may be of adapters, but somewhere below are whole weights."""
    base, adapters, _ = folders
    tokenizer = small.tokenizer().backend.to_str()
    checkpoints.save_adapters(base.parent / "second", small.adapted(LORA), LORA, tokenizer, base=adapters)
    for folder, below in ((adapters, adapters), (adapters, base.parent / "second")):
        about = json.loads((folder / "lora.json").read_text())
        about |= {"base": str(below), "fingerprint": checkpoints.fingerprint(checkpoints.resolve(below))}
        (folder / "lora.json").write_text(json.dumps(about))
        with pytest.raises(CheckpointError, match=r"lora.json: below its base .* are adapters again, in a circle"):
            checkpoints.read_config(folder)
        with pytest.raises(CheckpointError, match="in a circle"):
            checkpoints.load(folder)


def test_a_pipe_in_place_of_a_description(folders):
    _, adapters, _ = folders
    (adapters / "lora.json").unlink()
    os.mkfifo(adapters / "lora.json")
    with pytest.raises(CheckpointError, match="expected a file, found a named pipe"):
        checkpoints.load(adapters)
