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
) -> Float[Array, "B Q H D"]:
    """New queries against a cache in which the key of position p lies in slot p: slot j is seen if j ≤ position."""
    batch, q_len, heads, dim = q.shape
    kv_heads = k_cache.shape[1]
    scale = float(dim**-0.5) if scale is None else scale
    grouped = q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim).transpose(0, 2, 1, 3, 4)
    grouped = grouped.reshape(batch, kv_heads, -1, dim)
    scores = jnp.einsum("bnqd,bnkd->bnqk", grouped, k_cache, preferred_element_type=jnp.float32) * scale
    seen = jnp.arange(k_cache.shape[2]) <= jnp.repeat(positions, heads // kv_heads, axis=1)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1).astype(v_cache.dtype)
    out = jnp.einsum("bnqk,bnkd->bnqd", weights, v_cache)
    out = out.reshape(batch, kv_heads, q_len, heads // kv_heads, dim).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, q_len, heads, dim).astype(q.dtype)
