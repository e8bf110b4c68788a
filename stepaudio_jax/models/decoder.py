"""The Qwen2.5 decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU.

Shapes: B batch, T tokens, E hidden_size, V vocab_size, H and N query and key/value heads, D head_dim, K cache slots.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import DecoderConfig
from stepaudio_jax.kernels import decode_attention, flash_attention, ring_attention
from stepaudio_jax.models.layers import (
    AnyArray,
    Linear,
    RMSNorm,
    apply_rope,
    matmul,
    normal,
    param,
    rope_tables,
    run_layers,
    whole,
)
from stepaudio_jax.parallel.collectives import join, shard_of, split_over, sum_over


class DecoderLayer(nnx.Module):
    """Pre-norm attention (q, k, v with biases, o without) and a SwiGLU feed-forward."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, *, layers: int | None, dtype=jnp.float32):
        hidden, inner = config.hidden_size, config.intermediate_size
        self.head_dim = config.head_dim
        wide, narrow = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        kw = {"layers": layers, "dtype": dtype}
        self.input_layernorm = RMSNorm(rngs, hidden, config.rms_norm_eps, **kw)
        self.q_proj = Linear(rngs, (hidden, wide), ("embed", "heads"), bias=True, **kw)
        self.k_proj = Linear(rngs, (hidden, narrow), ("embed", "kv_heads"), bias=True, **kw)
        self.v_proj = Linear(rngs, (hidden, narrow), ("embed", "kv_heads"), bias=True, **kw)
        self.o_proj = Linear(rngs, (wide, hidden), ("heads", "embed"), bias=False, **kw)
        self.post_attention_layernorm = RMSNorm(rngs, hidden, config.rms_norm_eps, **kw)
        self.gate_proj = Linear(rngs, (hidden, inner), ("embed", "mlp"), bias=False, **kw)
        self.up_proj = Linear(rngs, (hidden, inner), ("embed", "mlp"), bias=False, **kw)
        self.down_proj = Linear(rngs, (inner, hidden), ("mlp", "embed"), bias=False, **kw)

    def qkv(self, x: Float[Array, "B T E"], cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        """Rotated queries [B, T, H, D], rotated keys and values [B, T, N, D]."""
        y = self.input_layernorm(x)
        q, k, v = (proj(y).reshape(*y.shape[:2], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return checkpoint_name((apply_rope(q, cos, sin), apply_rope(k, cos, sin), v), "qkv")

    def finish(self, x: Float[Array, "B T E"], attended: Float[Array, "B T H D"]) -> Float[Array, "B T E"]:
        """The attention's output projection and the feed-forward, each added to the residual stream."""
        x = checkpoint_name(x + self.o_proj(attended.reshape(*x.shape[:2], -1)), "middle")
        y = self.post_attention_layernorm(x)
        gate, up = checkpoint_name(self.gate_proj(y), "gate"), checkpoint_name(self.up_proj(y), "up")
        return x + self.down_proj(jax.nn.silu(gate) * up)


def attend(q: Array, k: Array, v: Array, segment_ids: Any) -> Float[Array, "B T H D"]:
    """Causal attention within segments, round a ring where rows are split over shards."""
    if (axis_name := split_over("length")) is not None:
        return ring_attention(q, k, v, axis_name=axis_name, causal=True, segment_ids=segment_ids)
    return flash_attention(q, k, v, causal=True, q_segment_ids=segment_ids, kv_segment_ids=segment_ids)


@jax.custom_vjp
def lookup(table: Float[Array, "V E"], tokens: Int[AnyArray, "B T"]) -> Float[Array, "B T E"]:
    """table[tokens], whose gradient adds up in float32: in bfloat16 a frequent token's many terms would stall."""
    return table[tokens]


def _lookup_forward(table, tokens):
    return table[tokens], (table[:, :0], tokens)  # of the table only its length and type


def _lookup_backward(saved, gradient):
    table, tokens = saved
    zeros = jnp.zeros_like(gradient, jnp.float32, shape=(len(table), gradient.shape[-1]))
    return zeros.at[tokens].add(gradient.astype(jnp.float32)).astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)

NOWHERE = 2**30
"""A slot beyond every cache, where writes are dropped."""

head_init = nnx.initializers.normal(0.02)


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, *, dtype=jnp.float32):
        self.config = config
        table = (config.vocab_size, config.hidden_size), ("vocab", "embed")
        self.embed_tokens = param(rngs, normal, *table, None, dtype)
        self.layers: nnx.Module | nnx.List = DecoderLayer(config, rngs, layers=config.num_hidden_layers, dtype=dtype)
        self.norm = RMSNorm(rngs, config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.lm_head = None if config.tie_word_embeddings else param(rngs, head_init, *table, None, dtype)

    def embed(self, tokens: Int[AnyArray, "B T"]) -> Float[Array, "B T E"]:
        table = whole(self.embed_tokens)
        shard, shards = shard_of("vocab")
        if shards == 1:
            return lookup(table, tokens)
        rows = tokens - shard * len(table)
        own = (rows >= 0) & (rows < len(table))
        return sum_over(jnp.where(own[..., None], lookup(table, jnp.where(own, rows, 0)), 0), "vocab")

    @property
    def head(self) -> nnx.Param:
        """[V, E], of which a hidden state's products are the logits."""
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def logits(self, hidden: Float[Array, "... E"]) -> Float[Array, "... V"]:
        """Float32 logits."""
        logits = matmul(hidden, whole(self.head), output_major=True, preferred_element_type=jnp.float32)
        return join(logits, "vocab", axis=-1)

    def __call__(
        self,
        embeds: Float[Array, "B T E"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"] | None = None,
        *,
        remat: str = "none",
        return_kv: bool = False,
    ) -> Any:
        """Normed hidden states [B, T, E] of whole sequences; with `return_kv` also each layer's keys and values,
        [layers, B, N, T, D], laid out as a cache.

        Args:
          segment_ids: tokens attend within their segment only; 0 is padding.
        """
        cos, sin = rope_tables(self.config, positions)

        def step(layer: DecoderLayer, x):
            q, k, v = layer.qkv(x, cos, sin)
            out = attend(q, k, v, segment_ids)
            kv = (k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)) if return_kv else None
            return layer.finish(x, out), kv

        hidden, kv = run_layers(self.layers, step, embeds, remat=remat)
        return (self.norm(hidden), kv) if return_kv else self.norm(hidden)

    def extend(
        self, embeds: Float[Array, "B T E"], positions: Int[AnyArray, "B T"], cache: Any
    ) -> tuple[Float[Array, "B T E"], Any]:
        """Runs new tokens against a cache, in which position p lies in slot p, and writes theirs into it.

        Args:
          positions: consecutive in each row.
          cache: keys and values, each [layers, B, N, K, D] (a list of pairs when the layers are unstacked). Where rows
            are split over shards, the slots are dealt out to them in stripes, as `__call__` leaves them.
        """
        cos, sin = rope_tables(self.config, positions)
        shard, shards = shard_of("length")
        slot = positions if shards == 1 else jnp.where(positions % shards == shard, positions // shards, NOWHERE)

        # A scatter: of a dynamic_update_slice XLA:CPU makes a whole second copy of the cache for the attention to read.
        rows, heads = jnp.ogrid[: embeds.shape[0], : self.config.num_key_value_heads // shard_of("kv_heads")[1]]
        at = rows[..., None], heads[..., None], slot[:, None]

        def write(slots: Array, new: Float[Array, "B T N D"], *index) -> Array:
            return slots.at[(*index, *at)].set(new.transpose(0, 2, 1, 3), mode="drop")

        def finish(layer: DecoderLayer, x, q, keys, values):
            return layer.finish(x, decode_attention(q, keys, values, positions, axis_name=split_over("length")))

        def separate(layer: DecoderLayer, x, slots):
            q, k, v = layer.qkv(x, cos, sin)
            slots = (write(slots[0], k), write(slots[1], v))
            return finish(layer, x, q, *slots), slots

        def stacked(layer: DecoderLayer, carry, index):
            # All layers' cache goes along and is written in place; as a scan's input and output it would be copied.
            x, cache = carry
            q, k, v = layer.qkv(x, cos, sin)
            cache = (write(cache[0], k, index), write(cache[1], v, index))
            return (finish(layer, x, q, cache[0][index], cache[1][index]), cache), None

        if isinstance(self.layers, nnx.List):
            hidden, cache = run_layers(self.layers, separate, embeds, cache)
        else:
            indices = jnp.arange(self.config.num_hidden_layers)
            (hidden, cache), _ = run_layers(self.layers, stacked, (embeds, tuple(cache)), indices)
        return self.norm(hidden), cache
