"""Flash attention on TPU, forward (Pallas): FlashAttention-2's online softmax (arXiv:2307.08691), laid out for the MXU.

The scores are held transposed, keys × queries. The running maximum and sum are then elementwise over registers with one
short reduction at the end, they and the log-sum-exp are plain rows of numbers, and the probabilities enter the second
product as its stationary operand, where a 256-wide matrix unit is full although head_dim is 128.

The scores of one block of keys are computed while the previous block's go through exp and the second product: two
score buffers take turns, and one stretch of code holds both halves for the compiler to interleave.

Shapes: B batch, N key/value heads, I tiles of R queries (stepaudio_jax/kernels/tiling.py), K keys padded to whole
blocks, D head_dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from stepaudio_jax.kernels.block_sizes import BlockSizes
from stepaudio_jax.kernels.tiling import fold, fold_visible, heads_first, unfold
from stepaudio_jax.kernels.visibility import LOWEST, MASKED, Visible, block_bounds, tile_area

LOG2_E = math.log2(math.e)

NT = (((1,), (1,)), ((), ()))  # a · bᵀ
TN = (((0,), (0,)), ((), ()))  # aᵀ · b


def dot(a: Array, b: Array, contract) -> Array:
    """In float32, at full precision if the operands are float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


def sees(first_key, keys: int, start: Array, stop: Array) -> Array:
    """[keys, R]: whether key first_key + row lies in the column's interval; start and stop are [1, R]."""
    position = first_key + jax.lax.broadcasted_iota(jnp.int32, (keys, start.shape[1]), 0)
    return (position >= start) & (position < stop)


def result(shape: tuple[int, ...], dtype, like: Array) -> jax.ShapeDtypeStruct:
    """What a kernel returns; under `jax.shard_map` it varies over the mesh as `like` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)


def cost(products: int, pairs: int, dim: int, arrays: Iterable[Array]) -> pl.CostEstimate:
    """For the compiler to schedule by and the planner to count: so many products over head_dim for each pair of a query
    and a key, and every array read or written once."""
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=2 * products * pairs * dim, bytes_accessed=moved, transcendentals=pairs)


def _kernel(bounds, start, stop, q, k, v, out, lse, acc, top, total, *slots, scale, block_kv, per_load, tiles):
    """One tile of queries against one load of keys: grid (B, N, I, loads).

    bounds [B · I · 4] in SMEM, in blocks of keys; start, stop, lse [1, R]; q, out [R, D]; k, v [load, D]; acc [D, R];
    top, total [1, R]; slots: two of scores [block_kv, R], each followed by their column maxima [1, R].
    """
    index = 4 * (pl.program_id(0) * tiles + pl.program_id(2))
    first, last, full_first, full_last = (bounds[index + i] for i in range(4))
    load = jax.lax.div(first, per_load) + pl.program_id(3)
    begin, end = jnp.maximum(first, load * per_load), jnp.minimum(last, (load + 1) * per_load)

    @pl.when(pl.program_id(3) == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)

    def rows(block):
        return pl.ds(pl.multiple_of((block - load * per_load) * block_kv, block_kv), block_kv)

    def score(block, slot, masked: bool):
        s = dot(k[rows(block)], q[...], NT) * (scale * LOG2_E)
        if masked:
            s = jnp.where(sees(block * block_kv, block_kv, start[...], stop[...]), s, MASKED)
        slots[2 * slot][...] = s
        slots[2 * slot + 1][...] = s.max(0, keepdims=True)

    def accumulate(block, slot):
        new_top = jnp.maximum(top[...], slots[2 * slot + 1][...])
        p = jnp.exp2(slots[2 * slot][...] - new_top)
        shrink = jnp.exp2(top[...] - new_top)
        top[...] = new_top
        total[...] = total[...] * shrink + p.sum(0, keepdims=True)
        values = v[rows(block)]
        acc[...] = acc[...] * shrink + dot(values, p.astype(values.dtype), TN)

    def advance(block, slot):
        """Block `block` waits in `slot`: accumulate it while the next one's scores fill the other slot."""
        full = (block + 1 >= full_first) & (block + 1 < full_last)

        @pl.when(full)
        def _():
            score(block + 1, 1 - slot, masked=False)
            accumulate(block, slot)

        @pl.when(~full)
        def _():
            score(block + 1, 1 - slot, masked=True)
            accumulate(block, slot)

    def in_its_slot(block, do):
        odd = ((block - begin) & 1) == 1
        pl.when(~odd)(lambda: do(block, 0))
        pl.when(odd)(lambda: do(block, 1))

    @pl.when(begin < end)
    def _():
        score(begin, 0, masked=True)
        jax.lax.fori_loop(begin, end - 1, lambda block, _: in_its_slot(block, advance), None)
        in_its_slot(end - 1, accumulate)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _():
        seen = total[...] > 0
        divisor = jnp.where(seen, total[...], 1)
        out[...] = (acc[...] / divisor).T.astype(out.dtype)
        lse[...] = jnp.where(seen, (top[...] + jnp.log2(divisor)) / LOG2_E, -jnp.inf)


def forward(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    visible: Visible,
    *,
    scale: float,
    sizes: BlockSizes,
    causal: bool = False,
    longest_segment: int | None = None,
    interpret=False,
    out_dtype=None,
) -> tuple[Float[Array, "B Q H D"], Float[Array, "B Q H"]]:
    """The attention's output and the float32 log-sum-exp of each query's scaled scores, −inf where nothing is seen.

    Args:
      causal, longest_segment: for the estimate of the cost only, as `Settings` says.
      out_dtype: the output's type, by default that of q.
    """
    batch, q_len, heads, dim = q.shape
    kv_len, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    sizes = sizes.fit(q_len, kv_len, group)
    sizes.check_forward(group, dim, q.dtype.itemsize)
    block_q, block_kv = sizes.block_q, sizes.block_kv
    out_dtype = out_dtype or q.dtype

    q = fold(q, kv_heads, block_q)
    k, v = heads_first(k, block_kv), heads_first(v, block_kv)
    tiles, rows = q.shape[2:4]
    kv_blocks = k.shape[2] // block_kv
    per_load = min(sizes.block_kv_load // block_kv, kv_blocks)

    bounds = block_bounds(visible, block_q)
    first, last = bounds.start // block_kv, pl.cdiv(bounds.stop, block_kv)
    full = pl.cdiv(bounds.full_start, block_kv), bounds.full_stop // block_kv
    scalars = jnp.stack([first, last, *full], -1).reshape(-1)
    # Grid steps are made only for the loads that the neediest tile asks for.
    loads = 1 if per_load == kv_blocks else jnp.max(jnp.maximum(pl.cdiv(last, per_load) - first // per_load, 1))

    def load_map(b, n, i, j, bounds):
        at = 4 * (b * tiles + i)
        wanted = jax.lax.div(bounds[at], per_load) + j  # past the last one needed, the same again: nothing is loaded
        return b, n, jnp.minimum(wanted, jax.lax.div(jnp.maximum(bounds[at + 1] - 1, 0), per_load)), 0

    def query_map(b, n, i, j, bounds):
        return b, n, i, 0, 0

    seen = pl.BlockSpec((None, None, 1, rows), lambda b, n, i, j, bounds: (b, i, 0, 0))
    queries = pl.BlockSpec((None, None, None, rows, dim), query_map)
    keys = pl.BlockSpec((None, None, per_load * block_kv, dim), load_map)
    area = tile_area(q_len, kv_len, block_q, block_kv, causal=causal, longest_segment=longest_segment)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, scale=scale, block_kv=block_kv, per_load=per_load, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, kv_heads, tiles, loads),
            in_specs=[seen, seen, queries, keys, keys],
            out_specs=[queries, pl.BlockSpec((None, None, None, 1, rows), query_map)],
            scratch_shapes=[
                pltpu.VMEM((dim, rows), jnp.float32),
                *[pltpu.VMEM((1, rows), jnp.float32)] * 2,
                *[pltpu.VMEM((block_kv, rows), jnp.float32), pltpu.VMEM((1, rows), jnp.float32)] * 2,
            ],
        ),
        out_shape=[result(q.shape, out_dtype, q), result((*q.shape[:3], 1, rows), jnp.float32, q)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=sizes.vmem_limit
        ),
        cost_estimate=cost(2, batch * heads * area, dim, (q, q, k, v)),
        interpret=interpret,
        name="flash_attention_forward",
    )(scalars, *(x[:, :, None] for x in fold_visible(visible, group, block_q)), q, k, v)
    return unfold(out, q_len, block_q), unfold(lse[:, :, :, 0], q_len, block_q)
