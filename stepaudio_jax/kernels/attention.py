"""Scaled dot-product attention in plain JAX: float32 softmax, grouped heads, segment ids, offsets.

Shapes: B batch, Q query length, K key length, H query heads, N key/value heads (H = N · G), D head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MASKED = -1e30
"""Added to a score that may not be seen. Finite, so that a row with nothing to see gives no NaN."""

QUERY_BLOCK = 256


def flash_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    causal: bool,
    q_segment_ids: Int[Array | np.ndarray, "B Q"] | None = None,
    kv_segment_ids: Int[Array | np.ndarray, "B K"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B Q H D"]:
    """softmax(q · kᵀ · scale) · v, where query i sees key j if j ≤ i (when causal) and their segments agree.

    Segment id 0 is padding: it is attended by nothing, and a query that sees nothing gives 0.

    Args:
      scale: defaults to D^−0.5.

    Raises:
      ValueError: heads that do not divide, lengths that disagree, or segment ids given on one side only.
    """
    _check(q, k, v, q_segment_ids, kv_segment_ids)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    q_len, k_len = q.shape[1], k.shape[1]
    if not causal or q_len != k_len or q_len <= QUERY_BLOCK:
        return _attend(q, k, v, causal, q_segment_ids, kv_segment_ids, scale, first_query=0)

    # Blocks of queries meet only the keys up to their own end: half the work, and scores that stay in cache.
    outputs = []
    for start in range(0, q_len, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, q_len)
        outputs.append(
            _attend(
                q[:, start:stop],
                k[:, :stop],
                v[:, :stop],
                causal,
                None if q_segment_ids is None else q_segment_ids[:, start:stop],
                None if kv_segment_ids is None else kv_segment_ids[:, :stop],
                scale,
                first_query=start,
            )
        )
    return jnp.concatenate(outputs, axis=1)


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


def _attend(q, k, v, causal, q_segment_ids, kv_segment_ids, scale, *, first_query: int):
    batch, q_len, heads, dim = q.shape
    k_len, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    # The heads of a group lie one after another along the queries: plain batched products, no repeated keys.
    grouped = q.reshape(batch, q_len, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, group * q_len, dim)
    scores = jnp.einsum("bnqd,bknd->bnqk", grouped, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(batch, kv_heads, group, q_len, k_len)

    seen = None
    if causal:
        seen = (first_query + jnp.arange(q_len)[:, None] >= jnp.arange(k_len))[None]
    if q_segment_ids is not None:
        same = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (kv_segment_ids[:, None, :] != 0)
        seen = same if seen is None else seen & same
    if seen is not None:
        scores = jnp.where(seen[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(batch, kv_heads, group * q_len, k_len)
    out = jnp.einsum("bnqk,bknd->bnqd", weights, v).reshape(batch, kv_heads, group, q_len, dim)
    if (
        q_segment_ids is not None and seen is not None
    ):  # softmax of a row of equal masked scores is uniform: make it nothing
        out = jnp.where(seen.any(-1)[:, None, None, :, None], out, 0)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, q_len, heads, dim)


def _check(q, k, v, q_segment_ids, kv_segment_ids):
    if k.shape != v.shape:
        raise ValueError(f"k and v: expected one shape, found {k.shape} and {v.shape}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k: expected the same batch and head_dim, found {q.shape} and {k.shape}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"heads: expected a multiple of {k.shape[2]} key/value heads, found {q.shape[2]}")
    if (q_segment_ids is None) != (kv_segment_ids is None):
        raise ValueError("q_segment_ids and kv_segment_ids: give both or neither")
    if q_segment_ids is not None:
        for name, ids, like in (("q_segment_ids", q_segment_ids, q), ("kv_segment_ids", kv_segment_ids, k)):
            if ids.shape != like.shape[:2]:
                raise ValueError(f"{name}: expected shape {like.shape[:2]}, found {ids.shape}")
