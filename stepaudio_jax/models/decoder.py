"""The Qwen2.5 decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU.

Shapes: B batch, T tokens, E hidden_size, V vocab_size, H and N query and key/value heads, D head_dim; of a cache R
rows, Q new tokens of a row, M pages of a row, P pages of S slots in a layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import DecoderConfig
from stepaudio_jax.kernels import flash_attention, paged_attention, ring_attention, write_pages
from stepaudio_jax.kernels.paged_attention import NOWHERE
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


def attend(q: Array, k: Array, v: Array, segment_ids: Any, groups: Any = None) -> Float[Array, "B T H D"]:
    """Causal attention within segments, round a ring where rows are split over shards; with `groups` (data.Batch)
    replies attend to the prompt that they share, too.

    Raises:
      ValueError: `groups` where rows are split over shards.
    """
    if (axis_name := split_over("length")) is not None:
        if groups is not None:
            raise ValueError("groups: expected rows that are whole, found them split over the axis context")
        return ring_attention(q, k, v, axis_name=axis_name, causal=True, segment_ids=segment_ids)
    within = {"q_segment_ids": segment_ids, "kv_segment_ids": segment_ids}
    if groups is None:
        return flash_attention(q, k, v, causal=True, **within)
    replies, prompts = (jnp.maximum(sign * groups, 0) for sign in (1, -1))
    own, own_lse = flash_attention(q, k, v, causal=True, return_lse=True, **within)
    shared, shared_lse = flash_attention(
        q, k, v, causal=False, q_segment_ids=replies, kv_segment_ids=prompts, return_lse=True
    )
    # Softmax over both: each part counts by its sum of exponentials.
    share = jax.nn.sigmoid(jnp.where(shared_lse > -jnp.inf, shared_lse - own_lse, -jnp.inf))[..., None]
    return (own + share * (shared.astype(jnp.float32) - own)).astype(q.dtype)


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


class PagedCache(NamedTuple):
    """Keys and values of all layers in one pool of pages, the P pages of each layer after those of the layer before.

    Attributes:
      pages: [layers · P, S, 2 · N, D], the key and the value of each head alternating; int8 where there is a scale.
      scale: [layers, 2 · N, D] float32, what a stored integer is to be multiplied by.
    """

    pages: Float[Array, "LP S 2*N D"]
    scale: Float[Array, "L 2*N D"] | None = None


def by_kv_head(x: Float[Array, "R Q H D"], scale: Float[Array, "N D"]) -> Float[Array, "R Q H D"]:
    """x times the scale of the key/value head that each of its heads shares."""
    grouped = x.reshape(*x.shape[:2], len(scale), -1, x.shape[-1]).astype(jnp.float32) * scale[:, None]
    return grouped.reshape(x.shape).astype(x.dtype)


def quantise(q: Array, k: Array, v: Array, scale: Float[Array, "2*N D"]) -> tuple[Array, Array, Array]:
    """Keys and values as int8. Channels keep their own scale (KIVI, arXiv:2402.02750, section 3.2, finds keys need it),
    of which the keys' is moved over to the queries, so that attention itself sees plain integers."""

    def rounded(x, scale):
        return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -127, 127).astype(jnp.int8)

    return by_kv_head(q, scale[::2]), rounded(k, scale[::2]), rounded(v, scale[1::2])


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
        groups: Int[AnyArray, "B T"] | None = None,
        remat: str = "none",
    ) -> Float[Array, "B T E"]:
        """Normed hidden states of whole sequences.

        Args:
          segment_ids: tokens attend within their segment only; 0 is padding.
          groups: and to the prompt that their segment shares with others (data.Batch).
        """
        cos, sin = rope_tables(self.config, positions)

        def step(layer: DecoderLayer, x):
            q, k, v = layer.qkv(x, cos, sin)
            return layer.finish(x, attend(q, k, v, segment_ids, groups)), None

        return self.norm(run_layers(self.layers, step, embeds, remat=remat)[0])

    def extend(
        self,
        embeds: Float[Array, "R Q E"],
        starts: Int[AnyArray, " R"],
        counts: Int[AnyArray, " R"],
        cache: PagedCache,
        page_table: Int[AnyArray, "R M"],
    ) -> tuple[Float[Array, "R Q E"], PagedCache]:
        """Runs new tokens against a paged cache and writes theirs into it.

        Args:
          starts: the position of each row's first new token.
          counts: how many of a row's Q tokens there are; the rest is padding, and a row of 0 is none.
          page_table: the pages of each row, numbered within a layer.
        """
        new = embeds.shape[1]
        layers, size = self.config.num_hidden_layers, cache.pages.shape[1]
        per_layer = len(cache.pages) // layers
        positions = starts[:, None] + jnp.arange(new)
        cos, sin = rope_tables(self.config, positions)
        pages = jnp.take_along_axis(page_table, jnp.minimum(positions // size, page_table.shape[1] - 1), axis=1)
        real = jnp.arange(new) < counts[:, None]
        slots = (pages * size + positions % size).reshape(-1)

        def step(layer: DecoderLayer, carry, index, scale):
            # All layers' pages go along and are written in place; as a scan's input and output they would be copied.
            x, pages = carry
            q, k, v = layer.qkv(x, cos, sin)
            if scale is not None:
                q, k, v = quantise(q, k, v, scale)
            at = jnp.where(real.reshape(-1), slots + index * per_layer * size, NOWHERE)
            pages = write_pages(pages, k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:]), at)
            out = paged_attention(q, pages, starts, counts, page_table + index * per_layer)
            if scale is not None:
                out = by_kv_head(out, scale[1::2])
            return (layer.finish(x, out), pages), None

        separate = isinstance(self.layers, nnx.List)
        indices = range(layers) if separate else jnp.arange(layers)
        scales = [None] * layers if cache.scale is None and separate else cache.scale
        (hidden, pages), _ = run_layers(self.layers, step, (embeds, cache.pages), indices, scales)
        return self.norm(hidden), cache._replace(pages=pages)
