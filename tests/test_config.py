"""The three config.json shapes, and mistakes in them."""

import json

import pytest

from stepaudio_jax.config import ConfigError, RopeScaling, StepAudioConfig

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_attention_groups": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "max_position_embeddings": 128,
    "eos_token_id": 151643,
}
AUDIO = {
    "n_mels": 128,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 2,
    "n_audio_layer": 2,
    "llm_dim": 64,
    "kernel_size": 3,
    "adapter_stride": 2,
}
NESTED = {"architectures": ["StepAudio2ForCausalLM"], "text_config": TEXT, "audio_encoder_config": AUDIO}
FLAT = {"architectures": ["StepAudioForCausalLMV2"], "model_type": "step_audio_qwen2"} | TEXT
FLAT |= {"audio_encoder_config": AUDIO}


def test_nested_and_flat_describe_the_same():
    nested, flat = StepAudioConfig.from_hf(NESTED), StepAudioConfig.from_hf(FLAT)
    assert nested == flat
    assert (nested.decoder.head_dim, nested.decoder.rms_norm_eps, nested.audio.head_dim) == (16, 1e-6, 16)
    assert nested.eos_token_ids == (151643, 151645, 151665) and nested.pad_token_id == 151643


def test_a_bare_decoder_and_a_bare_encoder():
    decoder = StepAudioConfig.from_hf({"architectures": ["Qwen2ForCausalLM"]} | TEXT)
    assert decoder.decoder.hidden_size == 64
    with pytest.raises(ConfigError, match="decoder only"):
        _ = decoder.audio
    sizes = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2}
    encoder = StepAudioConfig.from_hf({"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_config": sizes})
    assert (encoder.audio.n_audio_state, encoder.audio.n_audio_layer, encoder.audio.n_audio_ctx) == (32, 3, 1500)
    with pytest.raises(ConfigError, match="audio encoder only"):
        _ = encoder.decoder


def test_the_newer_name_of_rope_settings():
    values = {k: v for k, v in TEXT.items() if not k.startswith("rope")}
    values["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}
    config = StepAudioConfig.from_hf({"architectures": ["Qwen2ForCausalLM"]} | values)
    assert config.decoder.rope_theta == 5e5 and config.decoder.rope_scaling == RopeScaling("yarn", 4.0)


@pytest.mark.parametrize("name", ["33b", "8b", "tiny"])
def test_presets_survive_a_round_trip(name, tmp_path):
    preset = StepAudioConfig.preset(name)
    (tmp_path / "config.json").write_text(json.dumps(preset.to_hf()))
    assert StepAudioConfig.read(tmp_path) == preset


def broken(section: str | None, **changes):
    values = json.loads(json.dumps(NESTED))
    target = values[section] if section else values
    for key, value in changes.items():
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (broken(None, architectures=["LlamaForCausalLM"]), 'architectures: expected .*, found "LlamaForCausalLM"'),
        (broken(None, audio_encoder_config=...), "audio_encoder_config: missing from a StepAudio2ForCausalLM"),
        (broken("text_config", rms_norm_eps=...), "text_config: missing rms_norm_eps"),
        (broken("audio_encoder_config", n_audio_state=..., n_mels=...), "missing n_mels, n_audio_state"),
        (broken("text_config", hidden_act="gelu"), 'hidden_act: expected "silu"'),
        (broken("text_config", num_attention_groups=4), "num_attention_groups: expected num_key_value_heads 2"),
        (broken("text_config", num_attention_heads=5), "text_config.hidden_size: expected a multiple of 5"),
        (broken("audio_encoder_config", llm_dim=65), "llm_dim: expected the decoder's hidden_size 64, found 65"),
        (broken("text_config", num_hidden_layers=0), "num_hidden_layers: expected a positive number, found 0"),
        (broken("text_config", rope_scaling={"type": "dynamic", "factor": 2.0}), 'found "dynamic"'),
        (broken("text_config", rope_scaling={"type": "yarn"}), 'needs a "factor"'),
        (broken("text_config", rope_scaling={"type": "yarn", "factor": 2.0, "fctor": 1}), "unknown keys .*fctor"),
    ],
)
def test_mistakes_name_the_field(values, message):
    with pytest.raises(ConfigError, match=message):
        StepAudioConfig.from_hf(values)


def test_mistakes_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"config.json: no such file"):
        StepAudioConfig.read(tmp_path)
    with pytest.raises(ConfigError, match=r'preset: expected one of 33b, 8b, tiny.*, found "70b"'):
        StepAudioConfig.preset("70b")
