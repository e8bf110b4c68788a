"""A model small enough for tests, with every feature of the real one, and a tokenizer to go with it."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax import miniature
from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, StepAudioConfig
from stepaudio_jax.models import LoraConfig, StepAudio, add_lora
from stepaudio_jax.text import Tokenizer


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(miniature.build_tokenizer(512, samples=200))


def config(**decoder) -> StepAudioConfig:
    sizes = {
        "vocab_size": 520,  # more than the tokenizer's, as in the release
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
    }
    audio = AudioEncoderConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=2, llm_dim=32, adapter_state=24)
    return StepAudioConfig(DecoderConfig(**(sizes | decoder)), audio, eos_token_ids=(0, 1), pad_token_id=0)


def model(seed: int = 0, scale: float = 4.0, **decoder) -> StepAudio:
    """Random weights, larger than at the start of training, so that activations are far from zero."""
    made = StepAudio(config(**decoder), rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    state = nnx.state(made, nnx.Param)
    nnx.update(made, jax.tree.map(lambda x: x * scale + rng.standard_normal(x.shape).astype(x.dtype) * 0.02, state))
    return made


def adapt(made: StepAudio, lora: LoraConfig, seed: int = 0) -> StepAudio:
    """Adapters in the midst of training: neither matrix is zero."""
    add_lora(made, lora, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for path, parameter in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        if path[-2:] == ("lora", "b"):
            parameter.set_value(rng.standard_normal(parameter.shape, np.float32) * 0.05)
    return made


def adapted(lora: LoraConfig, seed: int = 0, **sizes) -> StepAudio:
    return adapt(model(seed, **sizes), lora, seed)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(16000 * seconds)) * 0.1).astype(np.float32)


@contextlib.contextmanager
def devices(count: int):
    """As if this machine had the first few devices only."""
    first = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: first)
        yield
