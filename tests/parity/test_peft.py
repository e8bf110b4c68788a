"""Adapters beside PEFT's own: the same logits from the same files, in both directions."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from checkpoints_convert import peft_config
from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.peft import from_peft, to_peft
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.synth import synth
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.models import LoraConfig
from tests import small
from tests.parity import cases

peft = pytest.importorskip("peft")
from transformers import AutoModelForCausalLM  # noqa: E402

pytestmark = pytest.mark.parity

SIZES = ("text_config.vocab_size=320", "text_config.num_hidden_layers=2", "audio_encoder_config.n_audio_layer=1")
LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture
def folders(tmp_path):
    """A released folder, our checkpoint of it, and its decoder alone, in which PEFT finds the same module names."""
    synth(tmp_path / "hf", overrides=SIZES, dtype="f32")
    from_hf(str(tmp_path / "hf"), tmp_path / "base")
    to_hf(tmp_path / "base", tmp_path / "decoder", decoder_only=True)
    return tmp_path


def compare(model, theirs, figure, what: str):
    prompt = cases.prompt((), "hf", seed=1, text=20)
    data = cases.batch([prompt], "hf", length=32, width=25_000)
    found = np.asarray(cases.run(model, "__call__", "hf", *data))[0, : len(prompt.tokens)]
    tokens = torch.tensor([list(prompt.tokens)])
    with torch.no_grad():
        truth = theirs.float().eval()(tokens).logits[0].numpy()
        with theirs.disable_adapter():
            plain = theirs(tokens).logits[0].numpy()
    assert np.abs(truth - plain).max() > 0.05  # the adapters do something
    figure(what, cases.apart(found, truth), 2e-4)


def test_ours_in_peft(folders, figure):
    model, tokenizer = checkpoints.load(folders / "base")
    small.adapt(model, LORA)
    rest = {"base": folders / "base"}
    checkpoints.save_adapters(folders / "adapters", model, LORA, tokenizer.backend.to_str(), **rest)
    to_peft(folders / "adapters", folders / "peft")
    theirs = AutoModelForCausalLM.from_pretrained(folders / "decoder")
    theirs = peft.PeftModel.from_pretrained(theirs, folders / "peft")
    compare(model, theirs, figure, "our adapters in PEFT, logits")
    compare(checkpoints.load(folders / "adapters")[0], theirs, figure, "the same, merged on loading")


def test_every_key_that_peft_writes_is_considered():
    """One that is not is refused where it has a value; a new version of PEFT may bring some to think about."""
    considered = {*peft_config.READ, *peft_config.HARMLESS, *peft_config.EXPECTED, *peft_config.REASONS}
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= considered


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal", "pissa", "olora"])
def test_an_adapter_that_was_not_trained_merges_to_its_base_or_is_refused(folders, start):
    """What PEFT computes with a fresh adapter is what its base computes, and so must the merged weights."""
    base = AutoModelForCausalLM.from_pretrained(folders / "decoder")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=start)
    peft.get_peft_model(base, config).save_pretrained(folders / "peft")
    if start in ("pissa", "olora"):
        with pytest.raises(ConversionError, match="path_initial_model_for_weight_conversion"):
            from_peft(folders / "peft", folders / "adapters", base=folders / "base")
        return
    from_peft(folders / "peft", folders / "adapters", base=folders / "base")
    to_hf(folders / "adapters", folders / "merged")
    merged, plain = (load_file(folders / name / "model.safetensors") for name in ("merged", "hf"))
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(merged[name], plain[name], rtol=0, atol=1e-6)


def test_pissa_that_peft_has_converted_is_read(folders, figure):
    """The remedy that the refusal names: the trained adapter less what it started with is plain LoRA of the base."""
    base = AutoModelForCausalLM.from_pretrained(folders / "decoder")
    config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(base, config)
    theirs.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    theirs.save_pretrained(folders / "start")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    theirs.peft_config["default"].init_lora_weights = "pissa"
    theirs.save_pretrained(folders / "peft", path_initial_model_for_weight_conversion=str(folders / "start"))
    from_peft(folders / "peft", folders / "adapters", base=folders / "base")
    to_hf(folders / "adapters", folders / "merged")
    name = "model.layers.1.self_attn.q_proj.weight"
    merged = load_file(folders / "merged" / "model.safetensors")[name]
    theirs = theirs.merge_and_unload().state_dict()[name].float().numpy()
    figure("PiSSA's, converted by PEFT, q_proj", np.linalg.norm(merged - theirs) / np.linalg.norm(theirs), 1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_in_ours(folders, figure, rslora):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folders / "decoder")
    targets = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(
        r=5, lora_alpha=7, target_modules=targets, use_rslora=rslora, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(folders / "peft")
    from_peft(folders / "peft", folders / "adapters", base=folders / "base")
    model, _, about = checkpoints.load_adapters(folders / "adapters")
    assert about.lora.rank == 5 and set(about.lora.targets) == set(targets)
    compare(model, theirs, figure, f"PEFT's adapters in ours, logits{', rsLoRA' if rslora else ''}")
    assert jax.tree.leaves(model.decoder.layers.q_proj.lora)
