"""Adapters to PEFT's files and back, merged into released tensors, and folders refused. PEFT itself: tests/parity."""

import json
import math
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from checkpoints_convert.command import main
from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.peft import CONFIG, WEIGHTS, from_peft, to_peft
from checkpoints_convert.peft_config import read_config
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.models import LoraConfig
from tests import small
from tests.checkpoints_convert.folders import assert_same_bits, released, tensors

LORA = LoraConfig(
    rank=3, alpha=5.0, targets=("q_proj", "down_proj", "mlp_up", "linear2"), modules=("encoder", "adaptor", "decoder")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made")
    released(path / "hf")
    from_hf(str(path / "hf"), path / "base")
    model, tokenizer = checkpoints.load(path / "base")
    small.adapt(model, LORA)
    checkpoints.save_adapters(path / "adapters", model, LORA, tokenizer.backend.to_str(), base=path / "base")
    return path, model


@pytest.fixture
def folders(made, tmp_path):
    """A base in bfloat16, adapters of it, and both as they are in memory."""
    for name in ("hf", "base", "adapters"):
        shutil.copytree(made[0] / name, tmp_path / name)
    return tmp_path, nnx.clone(made[1])


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


@pytest.mark.parametrize(
    "change",
    [{"rank": 4}, {"targets": ["q_proj", "down_proj", "mlp_up"]}, {"targets": [*LORA.targets, "k_proj"]}],
)
def test_adapters_that_are_not_those_described_are_not_merged(folders, change):
    """They would stop half way, or be left out without a word."""
    path, _ = folders
    about = json.loads((path / "adapters" / "lora.json").read_text())
    (path / "adapters" / "lora.json").write_text(json.dumps(about | {"lora": about["lora"] | change}))
    with pytest.raises(ConversionError, match=r"adapters/params: (missing|unknown|.* has shape .* lora.json asks for)"):
        to_hf(path / "adapters", path / "merged")
    assert not list(path.glob("merged*"))


def edited(folder, change):
    """A PEFT folder with other values in its config, or other tensors."""
    config, found = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(config, found)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, folder / WEIGHTS)


PLAIN = {  # what PEFT 0.21.2 writes of LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "owner/name", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 5, "lora_bias": False, "lora_dropout": 0.05,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 3,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"], "target_parameters": None,
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip


def written(tmp_path, **changes):
    (tmp_path / CONFIG).write_text(json.dumps(PLAIN | changes))
    return tmp_path / CONFIG


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": False},  # B is random too, which is a plain product as well
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},  # leaves the base's weights, too
        {"lora_alpha": 2.5, "auto_mapping": {"base_model_class": "Qwen2ForCausalLM"}, "layers_to_transform": [0]},
        {"of_a_later_version": None, "and_another": False, "with_nothing": [], "in_it": {}, "at_all": ""},
    ],
)
def test_plain_lora_and_rslora_are_read(tmp_path, changes):
    values = read_config(written(tmp_path, **changes))
    assert (values["r"], values["lora_alpha"]) == (3, changes.get("lora_alpha", 5))


CONVERT, MERGE = "path_initial_model_for_weight_conversion", "merge_and_unload"


@pytest.mark.parametrize(
    ("changes", "reason", "remedy"),
    [
        ({"init_lora_weights": "pissa"}, "PiSSA takes", CONVERT),
        ({"init_lora_weights": "pissa_niter_16"}, "PiSSA takes", CONVERT),
        ({"init_lora_weights": "PiSSA"}, "PiSSA takes", CONVERT),
        ({"init_lora_weights": "olora"}, "OLoRA changes", CONVERT),
        ({"init_lora_weights": "corda"}, "CorDA takes", CONVERT),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": {"scale": "stable"}}, "LoRA-GA changes", CONVERT),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "quantised base", MERGE),
        ({"init_lora_weights": "eva"}, "EVA gives each layer its own rank", MERGE),
        ({"init_lora_weights": "mica"}, "not known to leave the base", CONVERT),
        ({"init_lora_weights": "of_next_year"}, "not known to leave the base", CONVERT),
        ({"init_lora_weights": 1}, "not known to leave the base", CONVERT),
        ({"init_lora_weights": ["pissa"]}, "not known to leave the base", CONVERT),
        ({"alora_invocation_tokens": [5, 6]}, "aLoRA acts only on tokens after", "run it with PEFT"),
        ({"use_dora": True}, "DoRA scales", MERGE),
        ({"use_qalora": True}, "QALoRA", "run it with PEFT"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA", MERGE),
        ({"kasa_config": {"beta": 1e-4}}, "KaSA changes", MERGE),
        ({"arrow_config": {"top_k": 3}}, "Arrow chooses", "run it with PEFT"),
        ({"monteclora_config": {"num_samples": 8}}, "MonteCLoRA", MERGE),
        ({"velora_config": {"scale": 1.0}}, "VeLoRA", MERGE),
        ({"eva_config": {"rho": 2.0}}, "EVA gives", MERGE),
        ({"corda_config": {"corda_method": "ipm"}}, "CorDA takes", CONVERT),
        ({"megatron_config": {"a": 1}}, "Megatron", MERGE),
        ({"rank_pattern": {"q_proj": 4}}, "ranks of their own", MERGE),
        ({"alpha_pattern": {"q_proj": 4}}, "scales of their own", MERGE),
        ({"fan_in_fan_out": True}, "the other way round", "set it to false"),
        ({"lora_bias": True}, "B has a bias", MERGE),
        ({"bias": "lora_only"}, "biases of the base", MERGE),
        ({"modules_to_save": ["lm_head"]}, "whole modules", MERGE),
        ({"trainable_token_indices": [1]}, "rows of the embedding", MERGE),
        ({"target_parameters": ["experts.gate_up_proj"]}, "no linear layers", MERGE),
        ({"layer_replication": [[0, 1]]}, "repeated", MERGE),
        ({"peft_type": "XLORA"}, "only LoRA adapters", MERGE),
        ({"of_a_later_version": "yes"}, "of_a_later_version is 'yes'; expected None: not known here", MERGE),
        ({"of_a_later_version": 0}, "of_a_later_version is 0", MERGE),  # 0 is a number, not nothing
        ({"of_a_later_version": {"a": 1}}, "of_a_later_version", MERGE),
    ],
)
def test_all_else_is_refused_with_the_reason_and_a_remedy(tmp_path, changes, reason, remedy):
    with pytest.raises(ConversionError) as caught:
        read_config(written(tmp_path, **changes))
    assert len(caught.value.problems) == len(changes)
    assert reason in caught.value.problems[0] and remedy in caught.value.problems[0]
    assert caught.value.problems[0].startswith(f"{tmp_path / CONFIG}: {next(iter(changes))}")


@pytest.mark.parametrize(
    "changes",
    [{name: value} for name in ("r", "lora_alpha") for value in (None, 0, -1, True, "8", [8], math.nan, math.inf)]
    + [{"r": 2.5}, {"r": 10**9}, {"lora_alpha": 1e300}, {"use_rslora": "false"}, {"use_rslora": 1}],
)
def test_a_scale_that_is_none(tmp_path, changes):
    with pytest.raises(ConversionError, match=f"{next(iter(changes))}: expected"):
        read_config(written(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[]", "{", '{"a":' * 100_000, '{"r": 3, "lora_alpha": 5}', "\xff"])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConversionError, match=CONFIG):
        read_config(tmp_path / CONFIG)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_pipes_and_links_in_place_of_an_adapter(folders, name):
    path, _ = folders
    to_peft(path / "adapters", path / "peft")
    (path / "peft" / name).rename(path / "elsewhere")
    (path / "peft" / name).symlink_to(path / "elsewhere")
    with pytest.raises(ConversionError, match="outside its folder"):
        from_peft(path / "peft", path / "again", base=path / "base")
    (path / "peft" / name).unlink()
    os.mkfifo(path / "peft" / name)
    with pytest.raises(ConversionError, match="a named pipe"):
        from_peft(path / "peft", path / "again", base=path / "base")
    assert not (path / "again").exists()


def test_an_untrained_adapter_of_plain_lora_merges_to_the_base_itself(folders):
    """The trap of those that are refused: PiSSA's, merged into a whole base, moves q_proj by 28 % of its norm."""
    path, _ = folders
    to_peft(path / "adapters", path / "peft")
    edited(path / "peft", lambda config, found: found.update({n: 0 * x for n, x in found.items() if "lora_B" in n}))
    from_peft(path / "peft", path / "again", base=path / "base")
    to_hf(path / "again", path / "merged")
    assert_same_bits(tensors(path / "hf"), tensors(path / "merged"))


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
