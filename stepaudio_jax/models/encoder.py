"""The Qwen2-Audio encoder: log-mel at 100 Hz in, features at 25 Hz out (MODEL.md §2 and §4).

Shapes: B rows, F mel frames of a row, C = (F−1)//2+1, P = C//2, S n_audio_state, U units of 80 ms.

A row holds one chunk, or several (audio/rows.py), and each must come out as if it were alone. Three things are
therefore zeroed beyond a chunk's own end, because a convolution looks across it: the mel from its frame T, conv1's
output from frame T, and the encoder's output from row P, which the adaptor reads. Attention masks the rest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio import lengths
from stepaudio_jax.audio.rows import frame_layout
from stepaudio_jax.config import AudioEncoderConfig
from stepaudio_jax.kernels import flash_attention
from stepaudio_jax.models.layers import AnyArray, Conv, LayerNorm, Linear, param, run_layers, whole


class EncoderLayer(nnx.Module):
    """Pre-norm bidirectional attention and a GELU feed-forward."""

    def __init__(self, config: AudioEncoderConfig, rngs: nnx.Rngs, *, layers: int | None, dtype=jnp.float32):
        state, kw = config.n_audio_state, {"layers": layers, "dtype": dtype}
        self.num_heads = config.n_audio_head
        self.attn_ln = LayerNorm(rngs, state, **kw)
        self.query = Linear(rngs, (state, state), ("audio_embed", "audio_heads"), bias=True, **kw)
        self.key = Linear(rngs, (state, state), ("audio_embed", "audio_heads"), bias=False, **kw)
        self.value = Linear(rngs, (state, state), ("audio_embed", "audio_heads"), bias=True, **kw)
        self.out = Linear(rngs, (state, state), ("audio_heads", "audio_embed"), bias=True, **kw)
        self.mlp_ln = LayerNorm(rngs, state, **kw)
        self.mlp_up = Linear(rngs, (state, 4 * state), ("audio_embed", "audio_mlp"), bias=True, **kw)
        self.mlp_down = Linear(rngs, (4 * state, state), ("audio_mlp", "audio_embed"), bias=True, **kw)

    def __call__(
        self, x: Float[Array, "B C S"], query_ids: Int[Array, "B C"], key_ids: Int[Array, "B C"]
    ) -> Float[Array, "B C S"]:
        heads = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        y = self.attn_ln(x)
        # The release multiplies q and k by head_dim^−0.25 each, which is the usual scale on their product.
        y = flash_attention(
            self.query(y).reshape(heads),
            self.key(y).reshape(heads),
            self.value(y).reshape(heads),
            causal=False,
            q_segment_ids=query_ids,
            kv_segment_ids=key_ids,
            longest_segment=lengths.conv_frames(lengths.CHUNK_SAMPLES),
        )
        x = x + self.out(y.reshape(x.shape))
        return x + self.mlp_down(gelu(self.mlp_up(self.mlp_ln(x))))


class AudioEncoder(nnx.Module):
    """conv1 → conv2 (stride 2) → positions → blocks → mean of pairs → LayerNorm."""

    def __init__(self, config: AudioEncoderConfig, rngs: nnx.Rngs, *, dtype=jnp.float32):
        state = config.n_audio_state
        self.conv1 = Conv(rngs, (config.n_mels, state), ("mels", "audio_embed"), stride=1, dtype=dtype)
        self.conv2 = Conv(rngs, (state, state), (None, "audio_embed"), stride=2, dtype=dtype)
        self.positional_embedding = param(
            rngs, sinusoids, (config.n_audio_ctx, state), (None, "audio_embed"), None, dtype
        )
        self.layers: nnx.Module | nnx.List = EncoderLayer(config, rngs, layers=config.n_audio_layer, dtype=dtype)
        self.after_norm = LayerNorm(rngs, state, dtype=dtype)

    def __call__(
        self,
        mel: Float[AnyArray, "B F M"],
        sizes: Int[AnyArray, "B ..."],
        offsets: Int[AnyArray, "B U"] | None = None,
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "B P S"]:
        """Features at 25 Hz; rows that belong to no chunk are zero.

        Args:
          mel: log-mel, zero where there is no chunk.
          sizes: samples at 16 kHz of each row's only chunk, or with `offsets`, where a row holds several, of the chunk
            that each unit belongs to (audio/rows.py). Every other length follows from them.
          length_rule: "hf" or "vllm", which frames count as audio in the key mask (MODEL.md §4).

        Raises:
          ValueError: more frames in one chunk than the encoder has positions.
        """
        steps, limit = (mel.shape[1] - 1) // 2 + 1, self.positional_embedding.shape[0]
        if offsets is None and steps > limit:
            raise ValueError(f"mel: {mel.shape[1]} frames need {steps} positions, the encoder has {limit}")
        layout = frame_layout(mel.shape[1], sizes, offsets)
        x = jnp.asarray(mel).astype(self.conv1.kernel.dtype)
        x = zero_outside(gelu(self.conv1(zero_outside(x, layout.ids))), layout.ids)
        x = gelu(self.conv2(x))
        ids, index, sizes = (values[:, ::2] for values in layout)
        x = x + whole(self.positional_embedding)[index // 2]

        # The last frame may be heard by none, yet it listens.
        key_ids = jnp.where(index // 2 < key_frames(sizes, length_rule), ids, 0)
        x, _ = run_layers(self.layers, lambda layer, x: (layer(x, ids, key_ids), None), x, remat=remat)
        x = x[:, : steps // 2 * 2]
        x = x.reshape(x.shape[0], steps // 2, 2, -1).mean(2)
        return zero_outside(self.after_norm(x), ids[:, 1::2])


def sinusoids(key: Array, shape: tuple[int, int], dtype) -> Float[Array, "C S"]:
    """Whisper's position table (arXiv:2212.04356): sines, then cosines, of wavelengths from 2π to 20,000π frames."""
    half = shape[1] // 2
    angles = jnp.arange(shape[0])[:, None] * 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1).astype(dtype)


def key_frames(samples: Int[AnyArray, ...], length_rule: str) -> Int[Array, ...]:
    """Conv2-rate frames that attention may look at: those whose mel frame, every second one starting at
    (T + 1) % 2, lies before the counted length L."""
    first = (lengths.mel_frames(samples) + 1) % 2
    return jnp.maximum((lengths.counted_frames(samples, length_rule) - first + 1) // 2, 0)


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, in float32: its bfloat16 form alone would make features a tenth less accurate."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def zero_outside(x: Float[Array, "B T S"], ids: Int[Array, "B T"]) -> Float[Array, "B T S"]:
    return jnp.where((ids > 0)[..., None], x, 0)
