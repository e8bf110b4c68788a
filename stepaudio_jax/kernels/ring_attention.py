"""Ring attention (arXiv:2310.01889): a sequence longer than a chip, dealt out over a mesh axis, under `jax.shard_map`.

Each shard keeps its queries and passes its keys and values round the ring. While a block of keys is attended to, by the
same kernels as everywhere, the next is on the wire; partial outputs are merged through their log-sum-exp. Going back,
the gradients of keys and values travel with them, one step behind, and are home after a full round.

Causal work is balanced by striping (arXiv:2311.09431): shard r holds tokens r, r + n, r + 2n, …, so that every pair of
shards meets in one triangle. `stripe` deals a sequence out so; positions and everything else a token has go along.

Shapes, of one shard: B batch, L length, H query heads, N key/value heads, D head_dim; n shards.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels.attention import Implementation, Settings, backward, forward, settle
from stepaudio_jax.kernels.visibility import visible_keys


def stripe(x: Array, shards: int, axis: int = 1) -> Array:
    """Reorders an axis so that its r-th of `shards` equal parts holds elements r, r + shards, r + 2 · shards, …

    Raises:
      ValueError: a length that `shards` does not divide.
    """
    _divide(x, shards, axis)
    parts = x.reshape(*x.shape[:axis], -1, shards, *x.shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(x.shape)


def unstripe(x: Array, shards: int, axis: int = 1) -> Array:
    """Undoes `stripe`."""
    _divide(x, shards, axis)
    parts = x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(x.shape)


def _divide(x: Array, shards: int, axis: int) -> None:
    if x.shape[axis] % shards:
        raise ValueError(f"stripe: expected a length that {shards} shards divide, found {x.shape[axis]} (axis {axis})")


def ring_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L N D"],
    v: Float[Array, "B L N D"],
    *,
    axis_name: str,
    causal: bool,
    segment_ids: Int[Array, "B L"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    **kernel_options: Any,
) -> Float[Array, "B L H D"]:
    """`flash_attention` over the whole sequence, from within `jax.shard_map`, of which each shard passes its stripe.

    Args:
      axis_name: the mesh axis that the sequence is striped over.
      segment_ids: of this shard's tokens; contiguous runs in the whole sequence, 0 is padding.
      kernel_options: `block_sizes` and `interpret`, as in `flash_attention`.

    Raises:
      ValueError: as `flash_attention` does.
    """
    options = {"scale": scale, "implementation": implementation, "plain": False, "causal": causal} | kernel_options
    settings = settle(q, k, v, segment_ids, segment_ids, **options)
    return _ring(q, k, v, segment_ids, axis_name, causal, settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring(q, k, v, segment_ids, axis_name: str, causal: bool, settings: Settings):
    return _ring_forward(q, k, v, segment_ids, axis_name, causal, settings)[0]


def _visible(q, q_ids, kv_ids, step, axis_name, causal):
    """What this shard's queries see of the keys that have come `step` places round the ring."""
    shards, shard = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    return visible_keys(
        q.shape[0],
        q.shape[1],
        q.shape[1],
        causal=causal,
        q_segment_ids=q_ids,
        kv_segment_ids=kv_ids,
        q_offset=shard,
        kv_offset=(shard - step) % shards,
        position_stride=shards,
    )


def _pass_on(x, axis_name: str):
    shards = jax.lax.axis_size(axis_name)
    return jax.lax.ppermute(x, axis_name, [(i, (i + 1) % shards) for i in range(shards)])


def _ring_forward(q, k, v, segment_ids, axis_name, causal, settings):
    def step(carry, index):
        out, lse, kv = carry
        following = _pass_on(kv, axis_name)  # on the wire while this block is attended to
        visible = _visible(q, segment_ids, kv[2], index, axis_name, causal)
        part, part_lse = forward(q, kv[0], kv[1], visible, settings, jnp.float32)
        new_lse = jnp.logaddexp(lse, part_lse)
        top = jnp.where(jnp.isfinite(new_lse), new_lse, 0)  # still nothing seen: both weights are exp(−inf) = 0
        out = out * jnp.exp(lse - top)[..., None] + part * jnp.exp(part_lse - top)[..., None]
        return (out, new_lse, following), None

    # Made from q, so that they vary over the mesh as it does.
    out = jnp.zeros_like(q, jnp.float32)
    lse = jnp.full_like(q[..., 0], -jnp.inf, jnp.float32)
    (out, lse, _), _ = jax.lax.scan(step, (out, lse, (k, v, segment_ids)), jnp.arange(jax.lax.axis_size(axis_name)))
    out, lse = checkpoint_name((out, lse), "attention")
    return out.astype(q.dtype), (q, k, v, segment_ids, out, lse)


def _ring_backward(axis_name, causal, settings, saved, do):
    q, k, v, segment_ids, out, lse = saved
    delta = jnp.einsum("bqhd,bqhd->bqh", do, out, preferred_element_type=jnp.float32)

    def step(carry, index):
        dq, dkv, kv = carry
        following, arriving = _pass_on(kv, axis_name), _pass_on(dkv, axis_name)
        visible = _visible(q, segment_ids, kv[2], index, axis_name, causal)
        part, *parts = backward(q, kv[0], kv[1], do, lse, delta, visible, settings, jnp.float32)
        return (dq + part, jax.tree.map(jnp.add, arriving, tuple(parts)), following), None

    zeros = [jnp.zeros_like(x, jnp.float32) for x in (q, k, v)]
    start = (zeros[0], (zeros[1], zeros[2]), (k, v, segment_ids))
    (dq, dkv, _), _ = jax.lax.scan(step, start, jnp.arange(jax.lax.axis_size(axis_name)))
    dk, dv = _pass_on(dkv, axis_name)  # the last step home
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)
