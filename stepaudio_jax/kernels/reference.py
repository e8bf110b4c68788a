"""Attention written from its definition, all scores at once: what the other implementations are tested against."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    causal: bool,
    q_segment_ids: Int[Array, "B Q"] | None = None,
    kv_segment_ids: Int[Array, "B K"] | None = None,
    scale: float | None = None,
    q_offset=0,
    kv_offset=0,
    position_stride: int = 1,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B Q H"]]:
    """The output and the log-sum-exp of the scaled scores, in float32, or in float64 if that is what q is.

    Arguments as in `flash_attention`. Differentiable: the gradients are those of this text.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)

    seen = jnp.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    if causal:
        offsets = (jnp.broadcast_to(jnp.asarray(x), q.shape[:1])[:, None, None] for x in (q_offset, kv_offset))
        q_position, kv_position = offsets
        q_position = q_position + jnp.arange(q.shape[1])[:, None] * position_stride
        seen &= q_position >= kv_position + jnp.arange(k.shape[1]) * position_stride
    if q_segment_ids is not None and kv_segment_ids is not None:
        seen &= (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (q_segment_ids[:, :, None] != 0)
    seen = seen[:, None]

    top = jnp.where(seen, scores, -jnp.inf).max(-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores, top) - top), 0)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    out = jnp.einsum("bhqk,bkhd->bqhd", weights / jnp.where(some, total, 1), v)
    lse = jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), -jnp.inf)
    return out, lse[..., 0].swapaxes(1, 2)
