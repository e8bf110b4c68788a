"""Blockwise attention in plain JAX: the online softmax of the kernels, for CPUs, GPUs and whatever else XLA compiles.

Memory is linear in the lengths, forward and backward: one tile of scores exists at a time. Blocks of queries follow
one another, and each meets only the blocks of keys that some query in it, in some row of the batch, sees.

Shapes: B batch, Q and K lengths, H query heads, N key/value heads, D head_dim; I tiles of R queries
(stepaudio_jax/kernels/tiling.py) and C keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stepaudio_jax.kernels.tiling import fold, fold_visible, unfold
from stepaudio_jax.kernels.visibility import LOWEST, MASKED, Visible, block_bounds

BLOCK_Q, BLOCK_KV = 256, 256


def forward(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    visible: Visible,
    *,
    scale: float,
    out_dtype=None,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B Q H"]]:
    """The output, in `out_dtype` or q's type, and the float32 log-sum-exp of each query's scaled scores, −inf where
    nothing is seen."""
    tiling = _Tiling(q, k, visible, scale)

    def block(queries):
        rows, seen, ranges = queries

        def tile(index, carry):
            acc, top, total = carry
            s = tiling.mask(tiling.scores(rows, tiling.keys(k, index)), seen, index)
            new_top = jnp.maximum(top, s.max(-1))
            p = jnp.exp(s - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            gained = _product("bnrk,bknd->bnrd", p.astype(v.dtype), tiling.keys(v, index))
            return acc * shrink[..., None] + gained, new_top, total * shrink + p.sum(-1)

        # Made from the queries, so that under shard_map they vary over the mesh as those do.
        acc, top = jnp.zeros_like(rows, jnp.float32), jnp.full_like(rows[..., 0], LOWEST, jnp.float32)
        acc, top, total = tiling.over_keys(tile, ranges, (acc, top, jnp.zeros_like(top)))
        divisor = jnp.where(total > 0, total, 1)
        out = (acc / divisor[..., None]).astype(out_dtype or q.dtype)
        return out, jnp.where(total > 0, top + jnp.log(divisor), -jnp.inf)

    _, (out, lse) = tiling.over_queries(lambda carry, queries: (carry, block(queries)), None, q)
    return tiling.join(out), tiling.join(lse)


def backward(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    do: Float[Array, "B Q H D"],
    lse: Float[Array, "B Q H"],
    delta: Float[Array, "B Q H"],
    visible: Visible,
    *,
    scale: float,
    grad_dtype=None,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B K N D"], Float[Array, "B K N D"]]:
    """dq, dk and dv, in `grad_dtype` or q's type.

    Args:
      lse: the forward pass's log-sum-exp.
      delta: sum of do · out over head_dim, less the gradient of lse.
    """
    grad_dtype = grad_dtype or q.dtype
    tiling = _Tiling(q, k, visible, scale)

    def block(grads, queries):
        (rows, do_rows, lse_rows, delta_rows), seen, ranges = queries

        def tile(index, carry):
            dq, dk, dv = carry
            keys, values = tiling.keys(k, index), tiling.keys(v, index)
            # Scores of a query that sees nothing are infinite here, its lse being −inf, and then masked.
            p = jnp.exp(tiling.mask(tiling.scores(rows, keys) - lse_rows[..., None], seen, index))
            ds = (p * (_product("bnrd,bknd->bnrk", do_rows, values) - delta_rows[..., None])).astype(q.dtype)
            dv = tiling.add_keys(dv, index, _product("bnrk,bnrd->bknd", p.astype(do.dtype), do_rows))
            dk = tiling.add_keys(dk, index, _product("bnrk,bnrd->bknd", ds, rows))
            return dq + _product("bnrk,bknd->bnrd", ds, keys), dk, dv

        dq, *grads = tiling.over_keys(tile, ranges, (jnp.zeros_like(rows, jnp.float32), *grads))
        return grads, (dq * scale).astype(grad_dtype)

    grads = [jnp.zeros_like(x, jnp.float32) for x in (k, v)]
    (dk, dv), dq = tiling.over_queries(block, grads, (q, do, lse, delta))
    return tiling.join(dq), (dk * scale).astype(grad_dtype), dv.astype(grad_dtype)


class _Tiling:
    """How queries and keys are cut into blocks of nearly equal size."""

    def __init__(self, q: Array, k: Array, visible: Visible, scale: float):
        self.batch, self.q_len = q.shape[:2]
        self.kv_len, self.kv_heads = k.shape[1:3]
        self.scale = scale
        self.blocks = -(-self.q_len // BLOCK_Q)
        self.block_q = -(-self.q_len // self.blocks)
        self.chunks = -(-self.kv_len // BLOCK_KV)
        self.block_kv = -(-self.kv_len // self.chunks)
        self.visible = [x.swapaxes(0, 1) for x in fold_visible(visible, 1, self.block_q)]
        bounds = block_bounds(visible, self.block_q)
        first = jnp.where(bounds.stop > 0, bounds.start, self.kv_len).min(0) // self.block_kv
        self.ranges = jnp.stack([first, -(-bounds.stop.max(0) // self.block_kv)], -1)

    def over_queries(self, body, carry, arrays):
        """body(carry, (rows of each array, their intervals of keys, the chunks to visit)), tile by tile."""
        rows = jax.tree.map(lambda x: jnp.moveaxis(fold(x, self.kv_heads, self.block_q), 2, 0), arrays)
        inputs = (rows, self.visible, self.ranges)
        if self.blocks > 1:
            return jax.lax.scan(body, carry, inputs)
        carry, out = body(carry, jax.tree.map(lambda x: x[0], inputs))
        return carry, jax.tree.map(lambda x: x[None], out)

    def over_keys(self, tile, ranges: Array, carry):
        return tile(0, carry) if self.chunks == 1 else jax.lax.fori_loop(ranges[0], ranges[1], tile, carry)

    def join(self, x: Float[Array, "I B N R ..."]) -> Float[Array, "B Q H ..."]:
        return unfold(jnp.moveaxis(x, 0, 2), self.q_len, self.block_q)

    def first_key(self, index):
        """The last chunk is moved back so that it ends with the keys; what it shares with its neighbour is masked."""
        return jnp.minimum(index * self.block_kv, self.kv_len - self.block_kv)

    def keys(self, x: Float[Array, "B K N D"], index) -> Float[Array, "B C N D"]:
        if self.chunks == 1:
            return x
        return jax.lax.dynamic_slice_in_dim(x, self.first_key(index), self.block_kv, 1)

    def add_keys(self, x: Float[Array, "B K N D"], index, part: Float[Array, "B C N D"]) -> Array:
        if self.chunks == 1:
            return x + part
        return jax.lax.dynamic_update_slice_in_dim(x, self.keys(x, index) + part, self.first_key(index), 1)

    def scores(self, rows: Array, keys: Array) -> Float[Array, "B N R C"]:
        return _product("bnrd,bknd->bnrk", rows, keys) * self.scale

    def mask(self, s: Float[Array, "B N R C"], visible, index) -> Array:
        start, stop = (x[..., None] for x in visible)
        position = self.first_key(index) + jnp.arange(self.block_kv)
        seen = (position >= jnp.maximum(start, index * self.block_kv)) & (position < stop)
        grouped = s.reshape(self.batch, self.kv_heads, -1, self.block_q, self.block_kv)
        return jnp.where(seen[:, None, None], grouped, MASKED).reshape(s.shape)


def _product(dims: str, a: Array, b: Array) -> Array:
    return jnp.einsum(dims, a, b, preferred_element_type=jnp.float32)
