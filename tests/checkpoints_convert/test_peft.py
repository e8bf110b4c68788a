"""Adapters to PEFT's files and back, merged into released tensors, and folders refused. PEFT itself: tests/parity."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert.command import main
from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.peft import CONFIG, WEIGHTS, from_peft, to_peft
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.models import LoraConfig
from tests import small
from tests.checkpoints_convert.folders import assert_same_bits, released, tensors

LORA = LoraConfig(
    rank=3, alpha=5.0, targets=("q_proj", "down_proj", "mlp_up", "linear2"), modules=("encoder", "adaptor", "decoder")
)


@pytest.fixture
def folders(tmp_path):
    """A base in bfloat16, adapters of it, and both as they are in memory."""
    released(tmp_path / "hf")
    from_hf(str(tmp_path / "hf"), tmp_path / "base")
    model, tokenizer = checkpoints.load(tmp_path / "base")
    small.adapt(model, LORA)
    checkpoints.save_adapters(
        tmp_path / "adapters", model, LORA, tokenizer.backend.to_str(), base=tmp_path / "base"
    )
    return tmp_path, model


def test_there_and_back(folders):
    path, model = folders
    to_peft(path / "adapters", path / "peft", base_model="owner/name")
    config, found = json.loads((path / "peft" / CONFIG).read_text()), load_file(path / "peft" / WEIGHTS)
    assert config["r"] == 3 and config["lora_alpha"] == 5.0 and config["base_model_name_or_path"] == "owner/name"
    assert config["target_modules"] == ["down_proj", "linear2", "mlp.0", "q_proj"]
    layer = model.decoder.layers.down_proj.lora
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    np.testing.assert_array_equal(found[f"{name}A.weight"], np.asarray(layer.a[...])[1].T)
    np.testing.assert_array_equal(found[f"{name}B.weight"], np.asarray(layer.b[...])[1].T)
    assert found["base_model.model.adapter.linear2.lora_A.weight"].shape == (3, 48)
    assert found["base_model.model.encoder.blocks.0.mlp.0.lora_B.weight"].shape == (128, 3)
    assert len(found) == 2 * (2 + 2 + 2 + 1)

    from_peft(path / "peft", path / "again", base=path / "base")
    to_peft(path / "again", path / "twice", base_model="owner/name")
    assert_same_bits(found, load_file(path / "twice" / WEIGHTS))
    assert json.loads((path / "twice" / CONFIG).read_text()) == config
    one, two = (checkpoints.load_adapters(path / name)[2].lora for name in ("adapters", "again"))
    assert (one.rank, one.alpha, set(one.targets), set(one.modules)) == (
        two.rank, two.alpha, set(two.targets), set(two.modules),
    )  # fmt: skip


def test_to_hf_merges(folders):
    """Every tensor: W + scale · (A·B)ᵀ rounded once where there are adapters, the base's own bits elsewhere."""
    path, model = folders
    to_hf(path / "adapters", path / "merged")
    before, after = tensors(path / "hf"), tensors(path / "merged")
    changed = {}
    for name, layers in (("model.layers.{}.self_attn.q_proj.weight", model.decoder.layers.q_proj),
                         ("model.layers.{}.mlp.down_proj.weight", model.decoder.layers.down_proj),
                         ("encoder.blocks.{}.mlp.0.weight", model.encoder.layers.mlp_up)):  # fmt: skip
        a, b = (np.asarray(x[...], np.float64) for x in (layers.lora.a, layers.lora.b))
        for i in range(2):
            changed[name.format(i)] = before[name.format(i)].astype(np.float64) + 5 / 3 * (a[i] @ b[i]).T
    linear2 = model.adaptor.linear2.lora
    product = (np.asarray(linear2.a[...], np.float64) @ np.asarray(linear2.b[...], np.float64)).T
    changed["adapter.linear2.weight"] = before["adapter.linear2.weight"].astype(np.float64) + 5 / 3 * product
    assert_same_bits(*({k: v for k, v in x.items() if k not in changed} for x in (before, after)))
    for name, truth in changed.items():
        assert after[name].dtype == ml_dtypes.bfloat16 and np.any(after[name] != before[name])
        assert np.all(np.abs(after[name].astype(np.float64) - truth) <= np.abs(truth) * 2.0**-8 + 1e-7), name


def test_to_hf_takes_whole_modules_along(folders):
    path, model = folders
    model.adaptor.linear1.bias.set_value(model.adaptor.linear1.bias[...] + 1)
    tokenizer = (path / "base" / "tokenizer.json").read_text()
    checkpoints.save_adapters(path / "both", model, LORA, tokenizer, base=path / "base", modules=("adaptor",))
    to_hf(path / "both", path / "merged")
    expected = np.asarray(model.adaptor.linear1.bias[...])
    np.testing.assert_array_equal(tensors(path / "merged")["adapter.linear1.bias"], expected)
    with pytest.raises(ConversionError, match="besides adapters it holds all of adaptor"):
        to_peft(path / "both", path / "peft")


def edited(folder, change):
    """A PEFT folder with other values in its config, or other tensors."""
    config, found = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(config, found)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, folder / WEIGHTS)


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, found: config.update(use_dora=True), "use_dora is True; expected False"),
        (lambda config, found: config.update(peft_type="IA3"), "peft_type is 'IA3'; expected 'LORA'"),
        (lambda config, found: config.update(rank_pattern={"q_proj": 4}), "rank_pattern is .*; expected {}"),
        (lambda config, found: config.pop("r"), "r: expected a positive number, found None"),
        (lambda config, found: config.update(r=4), r"q_proj: no lora_A of shape \(4, 64\) in layer 0"),
        (lambda config, found: found.pop(Q), r"q_proj: no lora_A of shape \(3, 64\) in layer 1"),
        (lambda config, found: found.update(other=found[Q]), "other is no adapter of a linear layer of this model"),
    ],
)
def test_what_our_adapters_cannot_be(folders, change, message):
    path, _ = folders
    to_peft(path / "adapters", path / "peft")
    edited(path / "peft", change)
    with pytest.raises(ConversionError, match=message):
        from_peft(path / "peft", path / "again", base=path / "base")
    assert not (path / "again").exists()


def test_the_command(folders, capsys):
    path, _ = folders
    assert main(["to-peft", str(path / "adapters"), str(path / "peft")]) == 0
    assert main(["from-peft", str(path / "peft"), str(path / "again"), "--base", str(path / "base")]) == 0
    assert main(["verify", str(path / "adapters"), str(path / "again")]) == 0
    assert main(["to-peft", str(path / "base"), str(path / "other")]) == 2
    assert "holds whole weights, no adapters; to-hf converts them" in capsys.readouterr().err
    assert main(["to-peft", str(path / "adapters"), str(path / "peft")]) == 2
    (path / "peft" / WEIGHTS).unlink()
    assert main(["from-peft", str(path / "peft"), str(path / "new"), "--base", str(path / "base")]) == 2
    assert "only safetensors are read, never a pickle" in capsys.readouterr().err
