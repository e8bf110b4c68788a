"""Attention of new tokens against a paged key/value cache (PagedAttention, arXiv:2309.06180).

Rows of different lengths share one pool of pages; a row's tokens lie in the pages that its line of the page table
names, in order. On TPU JAX's own ragged paged attention kernel does the work; elsewhere the pages are gathered block
by block.

Shapes: R rows, Q new tokens of a row; M pages in a row's table; P pages of S slots in the pool; H query heads, N
key/value heads (H = N · G), D head_dim.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels.platform import platform
from stepaudio_jax.kernels.visibility import MASKED

KERNEL_HEAD_DIM = 128

MANY_QUERIES = 128
KEYS_AT_ONCE = {"few": 64, "many": 256}
"""Slots gathered together on a CPU, for so many new tokens of a row (benchmarks/README.md)."""

KEYS_AT_ONCE_ELSEWHERE = 1_024
"""The same on a GPU, where each turn of a loop that ends as data say waits for the host."""

NOWHERE = 2**30
"""A slot beyond every pool, where writes are dropped."""


def paged_attention(
    q: Float[Array, "R Q H D"],
    kv_pages: Float[Array, "P S 2*N D"],
    starts: Int[Array | np.ndarray, " R"],
    counts: Int[Array | np.ndarray, " R"],
    page_table: Int[Array | np.ndarray, "R M"],
    *,
    scale: float | None = None,
    implementation: Literal["pallas_tpu", "xla"] | None = None,
) -> Float[Array, "R Q H D"]:
    """Each row's new tokens attend to the row's whole cache up to themselves.

    Args:
      kv_pages: the pool, the key and the value of each head alternating; the new tokens' are already in it
        (`write_pages`).
      starts: the position of each row's first new token: so many tokens it had before.
      counts: how many of a row's Q queries there are; the rest is padding, and what comes out for it means nothing. A
        row of 0 is none, and gives 0.
      page_table: the pages of each row; entries past its length may be any page of the pool.
      scale: defaults to D^−0.5.
      implementation: "pallas_tpu" or "xla"; by default what suits the platform.

    Raises:
      ValueError: shapes that do not fit together, or a head_dim that the TPU kernel lacks when it is asked for.
    """
    q, kv_pages, starts, counts, page_table = map(jnp.asarray, (q, kv_pages, starts, counts, page_table))
    _check(q, kv_pages, starts, counts, page_table)
    if implementation not in (None, "pallas_tpu", "xla"):
        raise ValueError(f'implementation: expected "pallas_tpu", "xla" or None, found {implementation!r}')
    if implementation == "pallas_tpu" and q.shape[3] != KERNEL_HEAD_DIM:
        raise ValueError(f"head_dim: the TPU kernel expects {KERNEL_HEAD_DIM}, found {q.shape[3]}")
    suits = platform() == "tpu" and q.shape[3] == KERNEL_HEAD_DIM
    attend = _library if implementation == "pallas_tpu" or (implementation is None and suits) else _by_blocks
    scale = float(q.shape[3] ** -0.5) if scale is None else scale
    out = attend(q, kv_pages, starts, counts, page_table, scale)
    return jnp.where((counts > 0)[:, None, None, None], out, 0)


def _library(q, kv_pages, starts, counts, page_table, scale):
    rows, new, heads, dim = q.shape
    if kv_pages.shape[2] * kv_pages.dtype.itemsize < 4:
        least = 2 // kv_pages.dtype.itemsize
        raise ValueError(
            f"kv_pages: in {kv_pages.dtype} the TPU kernel takes at least {least} key/value heads a device, found "
            f"{kv_pages.shape[2] // 2}: split the heads over fewer devices (tensor)"
        )
    # Keys of about 512 slots at a time, in at most 16 pages, which fill the kernel's scalar registers.
    pages = min(max(512 // kv_pages.shape[1], 1), 16, page_table.shape[1])
    out = ragged_paged_attention(
        q.reshape(rows * new, heads, dim),
        kv_pages,
        jnp.where(counts > 0, starts, 0) + new,  # padding counts as tokens, which come after those that matter
        page_table,
        jnp.arange(rows + 1, dtype=jnp.int32) * new,
        jnp.full(1, rows, jnp.int32),
        sm_scale=scale,
        k_scale=None if kv_pages.dtype != jnp.int8 else 1.0,
        v_scale=None if kv_pages.dtype != jnp.int8 else 1.0,
        num_kv_pages_per_block=pages,
        num_queries_per_block=32,
    )
    return out.reshape(q.shape)


def _by_blocks(q, kv_pages, starts, counts, page_table, scale):
    """Softmax over blocks of keys with a running maximum and sum (arXiv:2205.14135, algorithm 1). The longest rows come
    first, so that blocks that only a quarter of the rows have are computed for that quarter."""
    rows, new, heads, dim = q.shape
    size, kv_heads = kv_pages.shape[1], kv_pages.shape[2] // 2
    on_cpu = platform() == "cpu"
    together = KEYS_AT_ONCE["few" if new < MANY_QUERIES else "many"] if on_cpu else KEYS_AT_ONCE_ELSEWHERE
    pages = min(max(together // size, 1), page_table.shape[1])
    kv_lengths = jnp.where(counts > 0, starts + counts, 0)
    order = jnp.argsort(-kv_lengths)
    kv_lengths, starts = kv_lengths[order], starts[order]
    table = jnp.pad(page_table, ((0, 0), (0, -page_table.shape[1] % pages)))[order]
    grouped = q[order].reshape(rows, new, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, dim)
    position = starts[:, None] + jnp.arange(new)
    position = jnp.tile(position, (1, heads // kv_heads))[:, None, :, None]  # [R, 1, G · Q, 1]
    kv_head, slot = jnp.arange(kv_heads)[:, None, None], jnp.arange(size)

    def block(first_rows, index, carry):
        top, total, out = (part[:first_rows] for part in carry)
        names = jax.lax.dynamic_slice(table, (0, index * pages), (first_rows, pages))[:, None, :, None]

        def held(heads):
            return kv_pages[names, slot, heads].reshape(first_rows, kv_heads, -1, dim).astype(q.dtype)

        at = index * pages * size + jnp.arange(pages * size)
        # What lies beyond a row's end may be anything, and 0 · NaN is NaN.
        values = jnp.where((at < kv_lengths[:first_rows, None])[:, None, :, None], held(2 * kv_head + 1), 0)
        queries, keys = grouped[:first_rows], held(2 * kv_head)
        scores = jnp.einsum("rnqd,rnsd->rnqs", queries, keys, preferred_element_type=jnp.float32) * scale
        scores = jnp.where(at <= position[:first_rows], scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        part = jnp.einsum("rnqs,rnsd->rnqd", weights.astype(q.dtype), values, preferred_element_type=jnp.float32)
        changed = new_top, total * shrink + weights.sum(-1, keepdims=True), out * shrink + part
        return tuple(whole.at[:first_rows].set(some) for whole, some in zip(carry, changed, strict=True))

    wide = jnp.zeros(grouped.shape, jnp.float32)
    carry = jnp.full_like(wide[..., :1], MASKED), wide[..., :1], wide
    blocks = (kv_lengths + pages * size - 1) // (pages * size)
    if pages == page_table.shape[1]:
        carry = block(rows, 0, carry)
    else:
        done = 0
        for first_rows, fewer in ((rows, rows // 4), (rows // 4, 0)) if rows >= 8 and on_cpu else ((rows, 0),):
            carry = jax.lax.fori_loop(done, blocks[fewer], functools.partial(block, first_rows), carry)
            done = blocks[fewer]
    _, total, out = carry
    out = jnp.zeros_like(out).at[order].set(out / jnp.maximum(total, 1e-30))
    out = out.reshape(rows, kv_heads, -1, new, dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(q.shape).astype(q.dtype)


def write_pages(
    kv_pages: Float[Array, "P S 2*N D"],
    k: Float[Array, "T N D"],
    v: Float[Array, "T N D"],
    slots: Int[Array, " T"],
) -> Float[Array, "P S 2*N D"]:
    """The pool with new tokens' keys and values in it, token t in slot slots[t] % S of page slots[t] // S; tokens whose
    slot is P · S or more are dropped."""
    pages, size, combined, dim = kv_pages.shape
    new = jnp.stack([k, v], 2).reshape(-1, combined, dim)
    if len(new) == 1:
        # Of one token's scatter XLA:CPU makes an update that reads what was there, for which it copies the whole pool.
        new, slots = jnp.concatenate([new, new]), jnp.stack([slots[0], jnp.asarray(NOWHERE, slots.dtype)])
    flat = kv_pages.reshape(pages * size, combined, dim).at[slots].set(new.astype(kv_pages.dtype), mode="drop")
    return flat.reshape(kv_pages.shape)


def _check(q, kv_pages, starts, counts, page_table):
    if q.ndim != 4 or kv_pages.ndim != 4 or page_table.ndim != 2:
        raise ValueError(
            "q, kv_pages and page_table: expected [rows, tokens, heads, head_dim], [pages, slots, 2 · key/value heads, "
            f"head_dim] and [rows, pages], found {q.shape}, {kv_pages.shape} and {page_table.shape}"
        )
    if q.shape[3] != kv_pages.shape[3]:
        raise ValueError(f"q and kv_pages: expected the same head_dim, found {q.shape[3]} and {kv_pages.shape[3]}")
    if kv_pages.shape[2] % 2 or q.shape[2] % (kv_pages.shape[2] // 2):
        raise ValueError(
            f"heads: expected a multiple of {kv_pages.shape[2]} / 2 key/value heads, found {q.shape[2]} query heads"
        )
    for name, size in (("starts", starts.shape), ("counts", counts.shape), ("page_table", page_table.shape[:1])):
        if size != q.shape[:1]:
            raise ValueError(f"{name}: expected {q.shape[0]} rows, as q has, found {size}")
