"""Which keys a query sees, as one interval of keys per query.

Causality, packing, padding, offsets and strides all come down to this: segment ids are contiguous runs, so the keys of
a query's segment are an interval; the keys at or before its position are one too; and so is what they share. Every
implementation works from these intervals: a mask is two comparisons, and the blocks of keys that a block of queries has
to visit follow from the smallest start and the largest stop in it.

Shapes: B batch, Q query length, K key length, I blocks of queries.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

MASKED = -1e30
"""A score that may not be seen. Finite, so that differences of two of them are numbers."""

LOWEST = -1e20
"""Where a running maximum starts: above MASKED, so that exp(MASKED − maximum) is 0 even if nothing was seen."""


class Visible(NamedTuple):
    """Query i sees key j iff start[i] ≤ j < stop[i]; one that sees nothing has start = stop = 0."""

    start: Int[Array, "B Q"]
    stop: Int[Array, "B Q"]


class BlockBounds(NamedTuple):
    """Of each block of queries: none sees a key outside [start, stop), each sees all of [full_start, full_stop)."""

    start: Int[Array, "B I"]
    stop: Int[Array, "B I"]
    full_start: Int[Array, "B I"]
    full_stop: Int[Array, "B I"]


def visible_keys(
    batch: int,
    q_len: int,
    kv_len: int,
    *,
    causal: bool,
    q_segment_ids: Int[Array | np.ndarray, "B Q"] | None = None,
    kv_segment_ids: Int[Array | np.ndarray, "B K"] | None = None,
    q_offset: Int[Array, ...] | int | None = None,
    kv_offset: Int[Array, ...] | int | None = None,
    position_stride: int = 1,
) -> Visible:
    """The interval of keys that each query sees; the arguments are those of `flash_attention`."""
    start = jnp.zeros((batch, q_len), jnp.int32)
    stop = jnp.full((batch, q_len), kv_len, jnp.int32)
    if q_segment_ids is not None and kv_segment_ids is not None:
        segments = _run_of_each if q_segment_ids is kv_segment_ids else _run_of_same_id
        start, stop = segments(jnp.asarray(q_segment_ids), jnp.asarray(kv_segment_ids))
    if causal:
        # q_offset + i·stride ≥ kv_offset + j·stride  ⟺  j ≤ i + ⌊(q_offset − kv_offset) / stride⌋
        ahead = jnp.asarray(0 if q_offset is None else q_offset) - jnp.asarray(0 if kv_offset is None else kv_offset)
        ahead = (ahead // position_stride).astype(jnp.int32).reshape(-1, 1)
        stop = jnp.minimum(stop, jnp.clip(jnp.arange(1, q_len + 1) + ahead, 0, kv_len))
    empty = stop <= start
    return Visible(jnp.where(empty, 0, start), jnp.where(empty, 0, stop))


def _run_of_each(ids: Int[Array, "B Q"], _) -> Visible:
    """Where each element's own run of equal ids starts and stops; id 0 is in no run."""
    index = jnp.arange(ids.shape[1], dtype=jnp.int32)
    changes = ids[:, 1:] != ids[:, :-1]
    edge = jnp.ones((ids.shape[0], 1), bool)
    start = jax.lax.cummax(jnp.where(jnp.concatenate([edge, changes], 1), index, 0), axis=1)
    last = jnp.concatenate([changes, edge], 1)
    stop = jax.lax.cummin(jnp.where(last, index + 1, ids.shape[1]), axis=1, reverse=True)
    return Visible(jnp.where(ids == 0, 0, start), jnp.where(ids == 0, 0, stop))


def _run_of_same_id(q_ids: Int[Array, "B Q"], kv_ids: Int[Array, "B K"]) -> Visible:
    """Where the keys with each query's id start and stop: all are compared, in one fused pass over integers."""
    same = (q_ids[:, :, None] == kv_ids[:, None]) & (q_ids != 0)[:, :, None]
    index = jnp.arange(kv_ids.shape[1], dtype=jnp.int32)
    stop = jnp.where(same, index + 1, 0).max(-1)
    return Visible(jnp.where(same, index, stop[..., None]).min(-1), stop)


def tile_area(
    q_len: int, kv_len: int, block_q: int, block_kv: int, *, causal: bool, longest_segment: int | None = None
) -> int:
    """Queries times keys of the tiles that one head visits, its rows being one segment from their first token on, or
    many of the longest length."""
    stops = [min((i + 1) * block_q, kv_len) if causal else kv_len for i in range(-(-q_len // block_q))]
    if longest_segment is not None:
        stops = [min(stop, longest_segment + block_q) for stop in stops]
    return sum(block_q * -(-stop // block_kv) * block_kv for stop in stops)


def pad_queries(x: Array, block: int, *, edge: bool = True) -> Array:
    """[B, Q] padded to whole blocks; with `edge` by its last column, so that padding changes no block's bounds."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), mode="edge" if edge else "constant")


def block_bounds(visible: Visible, block: int) -> BlockBounds:
    """The bounds of each block of `block` queries."""
    start, stop = (pad_queries(x, block).reshape(x.shape[0], -1, block) for x in visible)
    stop_max = stop.max(-1)
    first = jnp.where(stop > start, start, jnp.iinfo(jnp.int32).max).min(-1)
    return BlockBounds(jnp.where(stop_max == 0, 0, first), stop_max, start.max(-1), stop.min(-1))


def visited_blocks(visible: Visible, block_q: int, block_kv: int) -> Int[Array, ""]:
    """How many blocks of block_q × block_kv the kernels load and multiply, over the batch, for one head."""
    bounds = block_bounds(visible, block_q)
    return (-(-bounds.stop // block_kv) - bounds.start // block_kv).sum()
