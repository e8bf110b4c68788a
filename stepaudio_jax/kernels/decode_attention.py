"""Attention of new tokens against a contiguous key/value cache, in plain JAX.

Shapes: B batch, Q new tokens of a row, K cache slots, H query heads, N key/value heads, D head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels.visibility import MASKED


def decode_attention(
    q: Float[Array, "B Q H D"],
    k_cache: Float[Array, "B N K D"],
    v_cache: Float[Array, "B N K D"],
    positions: Int[Array | np.ndarray, "B Q"],
    *,
    scale: float | None = None,
    axis_name: str | None = None,
) -> Float[Array, "B Q H D"]:
    """New queries against a cache in which the key of position p lies in slot p: slot j is seen if j ≤ position.

    Args:
      axis_name: from within `jax.shard_map`, the mesh axis over which the slots are dealt out in stripes: position p
        lies in slot p // n of shard p % n. Each shard attends to its own, and the parts are merged.
    """
    batch, q_len, heads, dim = q.shape
    kv_heads = k_cache.shape[1]
    scale = float(dim**-0.5) if scale is None else scale
    grouped = q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim).transpose(0, 2, 1, 3, 4)
    grouped = grouped.reshape(batch, kv_heads, -1, dim)
    scores = jnp.einsum("bnqd,bnkd->bnqk", grouped, k_cache, preferred_element_type=jnp.float32) * scale
    held = jnp.arange(k_cache.shape[2])
    if axis_name is not None:
        held = held * jax.lax.axis_size(axis_name) + jax.lax.axis_index(axis_name)
    seen = held <= jnp.repeat(positions, heads // kv_heads, axis=1)[:, None, :, None]
    scores = jnp.where(seen, scores, MASKED)
    if axis_name is None:
        weights = jax.nn.softmax(scores, axis=-1).astype(v_cache.dtype)
        out = jnp.einsum("bnqk,bnkd->bnqd", weights, v_cache)
    else:
        weights = jnp.exp(scores - jax.lax.pmax(scores.max(-1, keepdims=True), axis_name))
        total = jax.lax.psum(weights.sum(-1, keepdims=True), axis_name)
        part = jnp.einsum("bnqk,bnkd->bnqd", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
        out = jax.lax.psum(part, axis_name) / total
    out = out.reshape(batch, kv_heads, q_len, heads // kv_heads, dim).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, q_len, heads, dim).astype(q.dtype)
