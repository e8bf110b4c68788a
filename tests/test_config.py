"""The three config.json shapes, and mistakes in them."""

import json
import math
import warnings

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


SIZES = {"text_config": [k for k in TEXT if k.startswith(("num_", "hidden_size", "inter", "vocab", "max_"))],
         "audio_encoder_config": list(AUDIO)}  # fmt: skip
NO_SIZE = (None, [64], {"a": 1}, "64", True, False, 2.5, math.nan, math.inf, -math.inf, 0, -1, 10**9, 10**400)


@pytest.mark.parametrize(("section", "name"), [(part, name) for part, names in SIZES.items() for name in names])
def test_a_size_is_a_positive_integer_of_a_size_that_models_have(section, name):
    for value in NO_SIZE:
        with pytest.raises(ConfigError, match=r"expected|missing") as caught:
            StepAudioConfig.from_hf(broken(section, **{name: value}))
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", NO_SIZE)
def test_sizes_of_the_public_audio_encoder(value):
    config = {"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_config": {"encoder_layers": value}}
    with pytest.raises(ConfigError, match=r"n_audio_layer: expected"):
        StepAudioConfig.from_hf(config)


YARN = {"type": "yarn", "factor": 2.0}


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("text_config", "head_dim", ([1], "16", True, 0, -16, 2.5, 15, 10**9)),
        ("text_config", "rms_norm_eps", (None, [1e-6], "x", True, 0, 0.0, -1e-6, math.nan, math.inf, 2, 10**400)),
        ("text_config", "rope_theta", (None, [1e4], "x", True, 0, -1e4, 1, math.nan, math.inf, 1e300, 10**400)),
        ("text_config", "rope_scaling", ([], "linear", True, 2.0, 0)),
        ("text_config", "rope_scaling", [{"rope_type": x, "factor": 2.0} for x in ([], 1, True, "dynamic", "")]),
        ("text_config", "rope_scaling", [YARN | {"factor": x} for x in (0, math.nan, math.inf, "2", [2], True)]),
        ("text_config", "rope_scaling", [YARN | {"beta_fast": x} for x in (None, 0, "x", math.nan)]),
        ("text_config", "rope_scaling", [YARN | {"truncate": x} for x in (None, 1, "x")]),
        ("text_config", "rope_parameters", [{"rope_theta": x} for x in ("x", math.nan, True, [1e6])]),
        ("text_config", "rope_parameters", ([1], 1, {"partial_rotary_factor": 0.5}, {"full_attention": {}})),
        ("text_config", "tie_word_embeddings", (None, "true", 1, [], 0.0)),
        (None, "tie_word_embeddings", (None, "true", 1, [], 0.0)),
        ("text_config", "hidden_act", (None, 1, ["silu"], "SILU", True)),
        ("text_config", "use_sliding_window", (True, "false", 1, [1])),
        ("text_config", "partial_rotary_factor", (0.5, "1", [1], math.nan)),
        (None, "eos_token_id", (-1, 1.5, "1", True, [], [1, None], [[1]], [True], math.nan, 1 << 31, [0] * 10_000, {})),
        (None, "pad_token_id", (-1, 1.5, "1", True, [], [1], math.inf, 1 << 31)),
        (None, "architectures", ("StepAudio2ForCausalLM", [1], [None], {"a": 1}, 3, True, ["x" * 10_000])),
        (None, "text_config", (None, [], "x", 1)),
        (None, "audio_encoder_config", (None, [], "x", 1, {})),
    ],
)
def test_values_of_another_type_or_out_of_range(section, name, values):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            StepAudioConfig.from_hf(broken(section, **{name: value}))
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value), value


@pytest.mark.parametrize("values", [[], None, "x", 3, [NESTED]])
def test_a_config_that_is_no_object(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config.json: expected a JSON object"):
        StepAudioConfig.read(tmp_path)


def test_rope_parameters_win_over_a_left_over_rope_theta_and_say_so():
    values = broken("text_config", rope_theta=1e4, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    with pytest.warns(UserWarning, match=r"rope_theta 10000.0 is left over: rope_parameters says 500000.0") as warned:
        assert StepAudioConfig.from_hf(values).decoder.rope_theta == 5e5
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values["text_config"]["rope_theta"] = 500_000  # the same
        assert StepAudioConfig.from_hf(values).decoder.rope_theta == 5e5
        del values["text_config"]["rope_parameters"]["rope_theta"]
        assert StepAudioConfig.from_hf(values).decoder.rope_theta == 5e5
    other = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ConfigError, match="rope_scaling: says otherwise than rope_parameters"):
        StepAudioConfig.from_hf(broken("text_config", rope_parameters={"rope_theta": 1e6}, rope_scaling=other))
    both = broken("text_config", rope_parameters={"rope_theta": 1e6} | other, rope_scaling=other)
    assert StepAudioConfig.from_hf(both).decoder.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_tied_embeddings_at_either_level(shape):
    def tied(top=..., text=...):
        values = json.loads(json.dumps(NESTED if shape == "nested" else FLAT))
        for of, value in ((values, top), (values.get("text_config", values), text)):
            if value is not ...:
                of["tie_word_embeddings"] = value
        return StepAudioConfig.from_hf(values).decoder.tie_word_embeddings

    assert not tied() and not tied(False, False)
    assert tied(True) and tied(text=True) and tied(True, True)
    if shape == "nested":
        for top in (True, False):
            with pytest.raises(ConfigError, match=f"tie_word_embeddings: {top} at the top, {not top} in text_config"):
                tied(top, not top)


def test_a_pad_id_of_zero_is_one():
    assert StepAudioConfig.from_hf(broken(None, eos_token_id=7, pad_token_id=0)).pad_token_id == 0
    assert StepAudioConfig.from_hf(broken(None, eos_token_id=7, pad_token_id=None)).pad_token_id == 7
    assert StepAudioConfig.from_hf(broken(None, eos_token_id=None)).eos_token_ids[0] == 151643
