"""A model converted from released files computes what torch computes from the same files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.initialise import from_parts
from checkpoints_convert.synth import synth
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.config import StepAudioConfig
from tests.parity import cases, torch_reference

pytestmark = pytest.mark.parity

SIZES = ("text_config.vocab_size=320", "text_config.num_hidden_layers=2", "audio_encoder_config.n_audio_layer=2")
CLIPS = ((16_000, 800), (24_161,))


def torch_model(folder) -> torch_reference.Reference:
    """The torch composition, its weights read from the folder's files."""
    model = torch_reference.Reference(StepAudioConfig.read(folder))
    loaded = {}
    for file in folder.glob("*.safetensors"):
        loaded |= load_file(file)
    ours = {torch_reference.released_name(name): name for name in model.state_dict()}
    model.load_state_dict({ours[name]: tensor.float() for name, tensor in loaded.items()})
    return model


def assert_equal_logits(model, reference, figure):
    prompts = [cases.prompt(clips, "hf", seed=i + 1) for i, clips in enumerate(CLIPS)]
    data = cases.batch(prompts, "hf", length=64, width=25_000)
    found = np.asarray(cases.run(model, "__call__", "hf", *data))
    worst = 0.0
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            truth = reference.logits(cases.truth_embeds(reference, prompt, "hf")).numpy()
        assert np.abs(truth).max() > 0.5  # something is there to compare
        worst = max(worst, cases.apart(found[row, : len(truth)], truth))
    figure("converted weights to logits", worst, 2e-4)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_logits(tmp_path, shape, figure):
    synth(tmp_path / "hf", overrides=SIZES, shape=shape, dtype="f32", max_shard_size=300_000)
    from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    model, _ = checkpoints.load(tmp_path / "ours")
    assert_equal_logits(model, torch_model(tmp_path / "hf"), figure)


def test_logits_of_a_model_made_from_parts(tmp_path, figure):
    """Through the way back, too: its export, loaded by torch."""
    synth(tmp_path / "hf", overrides=SIZES, shape="parts", dtype="f32")
    from_parts(str(tmp_path / "hf/decoder"), str(tmp_path / "hf/encoder"), tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back")
    model, _ = checkpoints.load(tmp_path / "ours")
    assert_equal_logits(model, torch_model(tmp_path / "back"), figure)


def test_transformers_loads_the_decoder_alone(tmp_path, figure):
    synth(tmp_path / "hf", overrides=SIZES, dtype="f32")
    from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "decoder", decoder_only=True, max_shard_size=300_000)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    model, _ = checkpoints.load(tmp_path / "ours")
    prompt = cases.prompt((), "hf", seed=1, text=20)
    data = cases.batch([prompt], "hf", length=32, width=25_000)
    found = np.asarray(cases.run(model, "__call__", "hf", *data))[0, : len(prompt.tokens)]
    with torch.no_grad():
        truth = theirs.float()(torch.tensor([list(prompt.tokens)])).logits[0].numpy()
    figure("exported decoder to logits", cases.apart(found, truth), 2e-4)
    assert json.loads((tmp_path / "decoder" / "generation_config.json").read_text())["eos_token_id"]
