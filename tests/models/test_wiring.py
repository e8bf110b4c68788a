"""The model against the same written out in numpy, weights by their released names; its parts by small numbers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import AudioEncoderConfig, RopeScaling, StepAudioConfig
from stepaudio_jax.models import StepAudio, hf_names
from stepaudio_jax.models.layers import LayerNorm, RMSNorm, apply_rope, rope_tables
from tests import small
from tests.models import by_hand

TOKENS = [7, 3, 500, 3, 91, 7, 260, 11, 3]


def config(**decoder) -> StepAudioConfig:
    """Few frames a chunk, and an epsilon and a base that nobody would take for the defaults."""
    made = small.config(**({"rms_norm_eps": 0.05, "rope_theta": 50.0} | decoder))
    audio = AudioEncoderConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=2, llm_dim=32, adapter_state=24)
    return dataclasses.replace(made, audio_encoder_config=audio)


@functools.cache
def released(**decoder) -> tuple[StepAudioConfig, dict[str, np.ndarray], StepAudio]:
    sizes = config(**decoder)
    tensors = by_hand.random_tensors(hf_names.released_shapes(sizes))
    model = nnx.eval_shape(lambda: StepAudio(sizes, rngs=nnx.Rngs(0)))
    hf_names.load_state(model, tensors)
    return sizes, tensors, model


def logits(model: StepAudio) -> np.ndarray:
    def compute(tokens):
        embeds = model.decoder.embed(tokens)
        return model.decoder.logits(model.decoder(embeds, jnp.arange(tokens.shape[1])[None]))

    return np.asarray(jax.jit(compute)(np.array([TOKENS])))[0]


@pytest.mark.parametrize("tied", [False, True])
def test_the_decoder_by_hand(tied):
    sizes, tensors, model = released(tie_word_embeddings=tied)
    assert (model.decoder.lm_head is None) == tied and ("lm_head.weight" in tensors) != tied
    np.testing.assert_allclose(logits(model), by_hand.decoder_logits(sizes, tensors, TOKENS), atol=2e-5)


@pytest.mark.parametrize("rule", ["hf", "vllm"])
def test_encoder_and_adaptor_by_hand(rule):
    """Of a chunk whose last frame the two rules count differently; only the rows of its audio tokens are to be read."""
    sizes, tensors, model = released()
    samples = 160 * 37
    frames, counted = lengths.mel_frames(samples), lengths.counted_frames(samples, rule)
    mel = np.random.default_rng(1).standard_normal((frames, 128)).astype(np.float32)
    encode = jax.jit(lambda mel, sizes: model.encode_mel(mel, sizes, length_rule=rule))
    found = np.asarray(encode(mel[None], np.array([samples])))[0]
    expected = by_hand.audio_features(sizes, tensors, mel, counted)
    count = int(lengths.audio_tokens(samples, rule))
    np.testing.assert_allclose(found[:count], expected[:count], atol=2e-5)


def test_the_norms_by_hand():
    x = np.array([[0.003, -0.001, 0.004, 0.002]], np.float32)
    rms = RMSNorm(nnx.Rngs(0), 4, 1e-4)
    rms.scale.set_value(jnp.array([1.0, 2.0, 3.0, 4.0]))
    expected = x / math.sqrt((9 + 1 + 16 + 4) * 1e-6 / 4 + 1e-4) * [1, 2, 3, 4]
    np.testing.assert_allclose(rms(x), expected, rtol=1e-5)
    layer = LayerNorm(nnx.Rngs(0), 4)
    layer.bias.set_value(jnp.array([0.0, 0.0, 0.0, 7.0]))
    centred = np.array([[0.001, -0.003, 0.002, 0.0]])  # of a mean of 0.002 and a variance of 3.5e-6
    np.testing.assert_allclose(layer(x), centred / math.sqrt(3.5e-6 + 1e-5) + [0, 0, 0, 7], rtol=1e-4, atol=1e-6)


def test_rotary_positions_by_hand():
    """A head of four channels at position 3 and base 100: channel 0 turns with 2 by 3, 1 with 3 by 0.3."""
    sizes = dataclasses.replace(small.config().decoder, head_dim=4, rope_theta=100.0)
    turned = apply_rope(jnp.array([1.0, 1.0, 0.0, 0.0])[None, None, None], *rope_tables(sizes, np.array([[3]])))
    np.testing.assert_allclose(turned[0, 0, 0], [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)], rtol=1e-5)


def test_rotary_scaling_by_hand():
    """Linear: every angle divided. YaRN (arXiv:2309.00071): the fastest channel turns as before, the slowest, which
    makes less than one turn over the trained length, by a share; both are lengthened by 0.1 · ln 4 + 1."""
    sizes = dataclasses.replace(small.config().decoder, head_dim=4, rope_theta=1e4, max_position_embeddings=512)
    at = np.array([[8]])
    linear = dataclasses.replace(sizes, rope_scaling=RopeScaling("linear", 4.0))
    cos, sin = rope_tables(linear, at)
    np.testing.assert_allclose(cos[0, 0, 0], [math.cos(2), math.cos(0.02)], rtol=1e-5)
    np.testing.assert_allclose(sin[0, 0, 0], [math.sin(2), math.sin(0.02)], rtol=1e-5)
    yarn = RopeScaling("yarn", 4.0, original_max_position_embeddings=128)
    cos, sin = rope_tables(dataclasses.replace(sizes, rope_scaling=yarn), at)
    longer = 0.1 * math.log(4) + 1
    np.testing.assert_allclose(sin[0, 0, 0], [longer * math.sin(8), longer * math.sin(0.02)], rtol=1e-4)
    np.testing.assert_allclose(cos[0, 0, 0], [longer * math.cos(8), longer * math.cos(0.02)], rtol=1e-4)
