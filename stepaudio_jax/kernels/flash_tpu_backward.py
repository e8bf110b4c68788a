"""Flash attention on TPU, backward (Pallas): dq, dk and dv in one fused pass, five products a tile, no atomics.

The grid walks over the blocks of keys of one key head. The queries of its group, their outputs' gradients and the sums
for dq stay in VMEM meanwhile, so that everything is read and written once; dk and dv of a block of keys are complete
when the walk leaves it. Where the queries do not fit, spans of them take turns, each visiting the blocks of keys that
it sees and adding to their dk and dv, in place and in float32.

As in the forward pass, probabilities are held keys × queries and enter the products as the stationary operand.

Shapes: B batch, N key/value heads, I tiles of R queries (stepaudio_jax/kernels/tiling.py), of one span; T blocks of
keys, K keys padded to whole blocks, D head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.kernels.block_sizes import BlockSizes
from stepaudio_jax.kernels.flash_tpu import LOG2_E, NT, TN, cost, dot, result, sees
from stepaudio_jax.kernels.tiling import fold, fold_visible, heads_first, unfold
from stepaudio_jax.kernels.visibility import MASKED, Visible, block_bounds, pad_queries, tile_area

TT = (((0,), (1,)), ((), ()))  # aᵀ · bᵀ


def _kernel(visits, ranges, full, start, stop, q, do, lse, delta, k, v, dk_in, dv_in, dq, dk, dv, dq_acc, dk_acc,
            dv_acc, *, scale, kv_blocks):  # fmt: skip
    """One block of keys against the tiles of queries that see it: grid (B, N, blocks of keys to visit).

    In SMEM: visits [B · 2], the first block of keys to visit and how many; ranges [B · T · 2], the tiles of queries
    that see each; full [B · I · 2], the keys that every query of a tile sees. start, stop, lse, delta [I, 1, R];
    q, do, dq [I, R, D]; k, v, dk_in, dv_in, dk, dv [block_kv, D]; dq_acc [I, D, R]; dk_acc, dv_acc [D, block_kv].
    """
    batch, visit = pl.program_id(0), pl.program_id(2)
    tiles, block_kv = q.shape[0], k.shape[0]
    block = visits[2 * batch] + visit
    first_key = block * block_kv

    @pl.when(visit == 0)
    def _():
        dq_acc[...] = jnp.zeros_like(dq_acc)

    def tile(i, masked: bool):
        s = dot(k[...], q[i], NT) * (scale * LOG2_E) - lse[i] * LOG2_E
        if masked:
            s = jnp.where(sees(first_key, block_kv, start[i], stop[i]), s, MASKED)
        p = jnp.exp2(s)
        ds = (p * (dot(v[...], do[i], NT) - delta[i])).astype(q.dtype)
        dv_acc[...] += dot(do[i], p.astype(do.dtype), TT)
        dk_acc[...] += dot(q[i], ds, TT)
        dq_acc[i] += dot(k[...], ds, TN)

    def step(i, _):
        at = 2 * (batch * tiles + i)
        seen_by_all = (full[at] <= first_key) & (first_key + block_kv <= full[at + 1])
        pl.when(seen_by_all)(lambda: tile(i, masked=False))
        pl.when(~seen_by_all)(lambda: tile(i, masked=True))

    @pl.when(visit < visits[2 * batch + 1])
    def _():
        dk_acc[...] = dk_in[...].T
        dv_acc[...] = dv_in[...].T
        at = 2 * (batch * kv_blocks + block)
        jax.lax.fori_loop(ranges[at], ranges[at + 1], step, None)
        dk[...] = dk_acc[...].T
        dv[...] = dv_acc[...].T

    @pl.when(visit == pl.num_programs(2) - 1)
    def _():
        def write(i, _):
            dq[i] = (dq_acc[i].T * scale).astype(dq.dtype)

        jax.lax.fori_loop(0, tiles, write, None)


def _span(per_query, per_key, visible: Visible, *, scale, block_q, block_kv, pairs, vmem_limit, interpret,
          grad_dtype):  # fmt: skip
    """dq of one span of queries, and dk and dv with its share added. `pairs`: of queries and keys in its tiles.

    per_query: q, do [B, N, I, R, D], lse, delta [B, N, I, R]; per_key: k, v, dk, dv [B, N, K, D];
    visible [B, I · block_q].
    """
    (q, do, lse, delta), (k, v, dk, dv) = per_query, per_key
    batch, kv_heads, tiles, rows, dim = q.shape
    kv_blocks = k.shape[2] // block_kv

    bounds = block_bounds(visible, block_q)
    first_key = jnp.arange(kv_blocks)[:, None] * block_kv  # [T, 1] against [B, 1, I]
    sees_block = (bounds.start[:, None] < first_key + block_kv) & (bounds.stop[:, None] > first_key)
    ranges = jnp.stack(_true_range(sees_block), -1)
    first_block, end_block = _true_range(sees_block.any(-1))
    # At least one: the block of dk and dv that a grid step holds is written, so it must have been read.
    visits = jnp.stack([first_block, jnp.maximum(end_block - first_block, 1)], -1)
    full = jnp.stack([bounds.full_start, bounds.full_stop], -1)

    def key_map(b, n, t, visits, *_):
        return b, n, visits[2 * b] + jnp.minimum(t, visits[2 * b + 1] - 1), 0

    seen = pl.BlockSpec((None, tiles, 1, rows), lambda b, n, t, *_: (b, 0, 0, 0))
    queries = pl.BlockSpec((None, None, tiles, rows, dim), lambda b, n, t, *_: (b, n, 0, 0, 0))
    per_query = pl.BlockSpec((None, None, tiles, 1, rows), lambda b, n, t, *_: (b, n, 0, 0, 0))
    keys = pl.BlockSpec((None, None, block_kv, dim), key_map)
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale, kv_blocks=kv_blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, kv_heads, visits[:, 1].max()),
            in_specs=[seen, seen, queries, queries, per_query, per_query, *[keys] * 4],
            out_specs=[queries, keys, keys],
            scratch_shapes=[
                pltpu.VMEM((tiles, dim, rows), jnp.float32),
                *[pltpu.VMEM((dim, block_kv), jnp.float32)] * 2,
            ],
        ),
        out_shape=[result(q.shape, grad_dtype, q), *[result(k.shape, jnp.float32, k)] * 2],
        input_output_aliases={11: 1, 12: 2},  # dk and dv: blocks that are not visited stay as they are
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem_limit
        ),
        cost_estimate=cost(5, pairs, dim, (q, q, q, k, v, dk, dv)),
        interpret=interpret,
        name="flash_attention_backward",
    )(
        *(x.reshape(-1) for x in (visits, ranges, full)),
        *(x[:, :, None] for x in fold_visible(visible, rows // block_q, block_q)),
        *(q, do, lse[:, :, :, None], delta[:, :, :, None]),
        *(k, v, dk, dv),
    )


def _true_range(flags: Bool[Array, "*X Y"]) -> tuple[Int[Array, "*X"], Int[Array, "*X"]]:
    """The first true flag along the last axis and one past the last; 0 and 0 if there is none."""
    found = flags.any(-1)
    first = jnp.argmax(flags, -1).astype(jnp.int32)
    end = (flags.shape[-1] - jnp.argmax(flags[..., ::-1], -1)).astype(jnp.int32)
    return jnp.where(found, first, 0), jnp.where(found, end, 0)


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
    sizes: BlockSizes,
    causal: bool = False,
    longest_segment: int | None = None,
    interpret=False,
    grad_dtype=None,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B K N D"], Float[Array, "B K N D"]]:
    """dq, dk and dv.

    Args:
      lse: the forward pass's log-sum-exp.
      delta: sum of do · out over head_dim, less the gradient of lse.
      causal, longest_segment: for the estimate of the cost only, as `Settings` says.
      grad_dtype: their type, by default that of q.
    """
    batch, q_len, heads, dim = q.shape
    kv_len, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    grad_dtype = grad_dtype or q.dtype
    sizes = sizes.fit(q_len, kv_len, group)
    block_q, block_kv = sizes.block_q_backward, sizes.block_kv_backward
    tiles = sizes.backward_span(q_len, group, dim, q.dtype.itemsize)

    # Whole spans: zeros pad the queries, and padding sees what its neighbour sees but adds nothing.
    per_query = [fold(x, kv_heads, block_q, tiles) for x in (q, do, lse, delta)]
    visible = Visible(*(pad_queries(x, tiles * block_q) for x in visible))
    k, v = heads_first(k, block_kv), heads_first(v, block_kv)
    grads = jnp.zeros_like(per_query[0], grad_dtype), *(jnp.zeros_like(x, jnp.float32) for x in (k, v))

    def add_span(i, grads):
        dq, dk, dv = grads
        part = [jax.lax.dynamic_slice_in_dim(x, i * tiles, tiles, 2) for x in per_query]
        seen = Visible(*(jax.lax.dynamic_slice_in_dim(x, i * tiles * block_q, tiles * block_q, 1) for x in visible))
        options = {"scale": scale, "block_q": block_q, "block_kv": block_kv, "vmem_limit": sizes.vmem_limit}
        options |= {"pairs": pairs, "interpret": interpret, "grad_dtype": grad_dtype}
        dq_part, dk, dv = _span(part, (k, v, dk, dv), seen, **options)
        return jax.lax.dynamic_update_slice_in_dim(dq, dq_part, i * tiles, 2), dk, dv

    spans = grads[0].shape[2] // tiles
    area = tile_area(q_len, kv_len, block_q, block_kv, causal=causal, longest_segment=longest_segment)
    pairs = batch * heads * area // spans  # of each, on average
    dq, dk, dv = add_span(0, grads) if spans == 1 else jax.lax.fori_loop(0, spans, add_span, grads)
    dk, dv = (x[:, :, :kv_len].swapaxes(1, 2).astype(grad_dtype) for x in (dk * scale, dv))
    return unfold(dq, q_len, block_q), dk, dv
