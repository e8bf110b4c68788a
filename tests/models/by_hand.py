"""The model written out in numpy and float64, over tensors by their released names: Qwen2.5's decoder as
arXiv:2412.15115 and its predecessors describe it, Whisper's encoder (arXiv:2212.04356) as Qwen2-Audio pools it, the
adaptor. One sequence, one chunk; loops instead of tricks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from stepaudio_jax.config import StepAudioConfig

Tensors = Mapping[str, np.ndarray]


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Of sizes that keep activations near 1, every one of them different."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        * (0.5 if len(shape) == 1 else 1 / math.sqrt(np.prod(shape[1:])))
        for name, shape in shapes.items()
    }


def linear(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """x · Wᵀ + b, W [out, in]."""
    bias = tensors.get(f"{name}.bias")
    product = x @ tensors[f"{name}.weight"].astype(np.float64).T
    return product if bias is None else product + bias


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale


def layer_norm(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normed * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rotated(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """One head's vector: channel i and channel i + D/2 are turned by position · θ^(−2i/D)."""
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def decoder_logits(config: StepAudioConfig, tensors: Tensors, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary]."""
    sizes = config.decoder
    heads, kv_heads, dim = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
    x = tensors["model.embed_tokens.weight"][tokens].astype(np.float64)
    for layer in range(sizes.num_hidden_layers):
        name = f"model.layers.{layer}."
        y = rms_norm(x, tensors[f"{name}input_layernorm.weight"], sizes.rms_norm_eps)
        q, k, v = (linear(tensors, f"{name}self_attn.{part}_proj", y) for part in "qkv")
        out = np.zeros((len(tokens), heads * dim))
        for head in range(heads):
            own = slice(head * dim, (head + 1) * dim)
            shared = slice((head * kv_heads // heads) * dim, (head * kv_heads // heads + 1) * dim)
            queries = np.stack([rotated(row, at, sizes.rope_theta) for at, row in enumerate(q[:, own])])
            keys = np.stack([rotated(row, at, sizes.rope_theta) for at, row in enumerate(k[:, shared])])
            scores = queries @ keys.T / math.sqrt(dim)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            out[:, own] = softmax(scores) @ v[:, shared]
        x = x + linear(tensors, f"{name}self_attn.o_proj", out)
        y = rms_norm(x, tensors[f"{name}post_attention_layernorm.weight"], sizes.rms_norm_eps)
        gate, up = (linear(tensors, f"{name}mlp.{part}_proj", y) for part in ("gate", "up"))
        x = x + linear(tensors, f"{name}mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    x = rms_norm(x, tensors["model.norm.weight"], sizes.rms_norm_eps)
    head = "model.embed_tokens.weight" if sizes.tie_word_embeddings else "lm_head.weight"
    return x @ tensors[head].astype(np.float64).T


def convolution(tensors: Tensors, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    """Over time, width 3, one zero at either end; weights [out, in, 3], x [time, in]."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    weight, steps = tensors[f"{name}.weight"].astype(np.float64), (len(x) - 1) // stride + 1
    rows = [np.einsum("ti,oit->o", padded[at * stride : at * stride + 3], weight) for at in range(steps)]
    return np.stack(rows) + tensors[f"{name}.bias"]


def audio_features(config: StepAudioConfig, tensors: Tensors, mel: np.ndarray, counted: int) -> np.ndarray:
    """[rows at 12.5 Hz, decoder's width] of a chunk's log-mel [frames, bands], of which `counted` frames are audio."""
    sizes = config.audio
    x = gelu(convolution(tensors, "encoder.conv1", mel.astype(np.float64), 1))
    x = gelu(convolution(tensors, "encoder.conv2", x, 2))
    x = x + tensors["encoder.positional_embedding.weight"][: len(x)]
    keys = sum(frame < counted for frame in range((len(mel) + 1) % 2, len(mel), 2))
    dim = sizes.n_audio_state // sizes.n_audio_head
    for layer in range(sizes.n_audio_layer):
        name = f"encoder.blocks.{layer}."
        y = layer_norm(tensors, f"{name}attn_ln", x)
        q, k, v = (linear(tensors, f"{name}attn.{part}", y) for part in ("query", "key", "value"))
        out = np.zeros_like(x)
        for head in range(sizes.n_audio_head):
            own = slice(head * dim, (head + 1) * dim)
            out[:, own] = softmax(q[:, own] @ k[:keys, own].T / math.sqrt(dim)) @ v[:keys, own]
        x = x + linear(tensors, f"{name}attn.out", out)
        y = layer_norm(tensors, f"{name}mlp_ln", x)
        x = x + linear(tensors, f"{name}mlp.2", gelu(linear(tensors, f"{name}mlp.0", y)))
    x = x[: len(x) // 2 * 2].reshape(len(x) // 2, 2, -1).mean(1)
    x = layer_norm(tensors, "encoder.after_norm", x)
    x = gelu(convolution(tensors, "adapter.conv", x, 2))
    return linear(tensors, "adapter.linear2", np.maximum(linear(tensors, "adapter.linear1", x), 0))
