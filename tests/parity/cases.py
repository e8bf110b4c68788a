"""What the parity tests run on: small configs of the released layout, sounds, prompts, our side of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, RopeScaling, StepAudioConfig
from stepaudio_jax.models import AudioInput, StepAudio, hf_names
from stepaudio_jax.training import next_tokens, token_scores
from tests.parity import torch_reference

RULES = ("hf", "vllm")
VOCAB = 320
PATCH = VOCAB - 1
"""Stands in the prompts for `<audio_patch>`."""


def _config(audio: tuple[int, int, int], **decoder) -> StepAudioConfig:
    state, heads, layers = audio
    hidden = decoder["hidden_size"]
    sizes = {"vocab_size": VOCAB, "intermediate_size": 3 * hidden, "max_position_embeddings": 1024}
    return StepAudioConfig(
        DecoderConfig(**(sizes | decoder)),
        AudioEncoderConfig(
            n_audio_state=state,
            n_audio_head=heads,
            n_audio_layer=layers,
            llm_dim=hidden,
            adapter_state=2 * state,
        ),
    )


CONFIGS = {
    "33b-like": _config(  # five query heads a group, eps 1e-5, untied
        (80, 5, 3), hidden_size=160, num_hidden_layers=3, num_attention_heads=10, num_key_value_heads=2,
        head_dim=16, rms_norm_eps=1e-5, rope_theta=1e6,
    ),
    "8b-like": _config(  # seven query heads a group, eps 1e-6, untied
        (64, 4, 2), hidden_size=112, num_hidden_layers=4, num_attention_heads=14, num_key_value_heads=2,
        head_dim=8, rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    "yarn": _config(  # tied, heads narrower than the stream, positions far beyond the trained length
        (48, 2, 4), hidden_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True,
        rope_scaling=RopeScaling("yarn", 8.0, original_max_position_embeddings=32),
    ),
    "linear": _config(  # tied, one key head for all, heads wider than the stream
        (32, 1, 2), hidden_size=64, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=32, rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True,
        rope_scaling=RopeScaling("linear", 4.0),
    ),
}  # fmt: skip


@functools.cache
def reference(name: str) -> tuple[torch_reference.Reference, dict[str, np.ndarray]]:
    return torch_reference.random_model(CONFIGS[name], seed=sorted(CONFIGS).index(name))


def fresh(name: str, dtype=jnp.float32) -> StepAudio:
    """Our model with the reference's weights."""
    model = nnx.eval_shape(lambda: StepAudio(CONFIGS[name], rngs=nnx.Rngs(0), dtype=dtype))
    nnx.update(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.state(model)))
    hf_names.load_state(model, reference(name)[1])
    return model


ours = functools.cache(fresh)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """float32 [samples]: noise under two gliding tones, never steady, so that no two frames are alike."""
    rng = np.random.default_rng([seed, samples])
    time = np.arange(samples) / 16000
    wave = 0.05 * rng.standard_normal(samples)
    for pitch, glide in rng.uniform([200, -300], [3000, 300], (2, 2)):
        wave += 0.2 * np.sin(2 * np.pi * (pitch + glide * np.sin(time)) * time)
    return (wave * (0.6 + 0.4 * np.sin(7 * time + seed))).astype(np.float32)


class Prompt(NamedTuple):
    """Token ids with one PATCH per audio token, and the clips in their order."""

    tokens: list[int]
    clips: list[np.ndarray]


def prompt(clip_samples: Sequence[int], rule: str, seed: int, text: int = 9) -> Prompt:
    """Text, and between it the clips of so many samples."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> list[int]:
        return rng.integers(0, PATCH, count).tolist()

    tokens, clips = words(text), []
    for i, samples in enumerate(clip_samples):
        clips.append(sound(samples, 10 * seed + i))
        tokens += [PATCH] * torch_reference.lengths(samples, rule).tokens + words(3)
    return Prompt(tokens + words(4), clips)


class Arrays(NamedTuple):
    """A batch as our model takes it."""

    tokens: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    audio: AudioInput


def batch(prompts: Sequence[Prompt], rule: str, *, length: int, width: int, spare: int = 1) -> Arrays:
    """Prompts side by side, one a row, their clips in one bucket of `width` samples, `spare` places empty.

    The clips lie in reverse order, so that a slot and its clip's place in the prompts are different things.
    """
    clips = [(row, i) for row, p in enumerate(prompts) for i in range(len(p.clips))][::-1]
    rows_each = torch_reference.lengths(width, "hf").adaptor
    samples = np.zeros((len(clips) + spare, width), np.float32)
    sizes = np.zeros(len(clips) + spare, np.int32)
    starts = {}
    for place, (row, i) in enumerate(clips):
        clip = prompts[row].clips[i]
        samples[place, : len(clip)], sizes[place] = clip, len(clip)
        starts[row, i] = place * rows_each
    tokens = np.zeros((len(prompts), length), np.int32)
    segment_ids, slots = np.zeros_like(tokens), np.full_like(tokens, -1)
    for row, p in enumerate(prompts):
        size = len(p.tokens)
        tokens[row, :size], segment_ids[row, :size] = p.tokens, 1
        counts = [torch_reference.lengths(len(clip), rule).tokens for clip in p.clips]
        here = [starts[row, i] + np.arange(count) for i, count in enumerate(counts)]
        slots[row, :size][np.array(p.tokens) == PATCH] = np.concatenate([*here, []])
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Arrays(tokens, positions, segment_ids, AudioInput(samples, sizes, None, slots))


def truth_embeds(model: torch_reference.Reference, p: Prompt, rule: str):
    """The torch composition's decoder input for one prompt."""
    features = [model.features(torch_reference.log_mel(clip), len(clip), rule) for clip in p.clips]
    return model.embed(p.tokens, PATCH, features)


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def apart(x, y) -> float:
    """Largest absolute difference, in float64."""
    return float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())


@functools.cache
def _jitted(graphdef, method: str, rule: str):
    return jax.jit(lambda state, *args: getattr(nnx.merge(graphdef, state), method)(*args, length_rule=rule))


def run(model: StepAudio, method: str, rule: str, *args):
    """`model.method(*args, length_rule=rule)`, compiled once per shape."""
    graphdef, state = nnx.split(model)
    return _jitted(graphdef, method, rule)(state, *args)


def relative_errors(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Norm of the difference over the norm of the truth, per tensor."""
    assert found.keys() == truth.keys()
    errors = {}
    for name, expected in truth.items():
        size = np.linalg.norm(expected.astype(np.float64))
        assert size > 0, f"{name}: its gradient should not vanish"
        errors[name] = float(np.linalg.norm(found[name].astype(np.float64) - expected) / size)
    return errors


def loss(model, hidden, tokens, mask):
    """The training loss: mean negative log-likelihood of the masked tokens."""
    targets, counted = next_tokens(tokens, mask)
    log_probs = token_scores(hidden, model.decoder.head, targets, chunks=2).log_probs
    return -jnp.where(counted, log_probs, 0).sum() / counted.sum()


def our_gradients(model, loss) -> dict[str, np.ndarray]:
    """Gradients of `loss(model)` under the released names."""
    graphdef, params = nnx.split(model, nnx.Param)
    grads = jax.jit(jax.grad(lambda params: loss(nnx.merge(graphdef, params))))(params)
    return hf_names.save_state(nnx.merge(graphdef, grads))
