"""Attention of new tokens against a paged key/value cache (PagedAttention, arXiv:2309.06180).

Rows of different lengths share one pool of pages; a row's tokens lie in the pages that its line of the page table
names, in order. A call may hold rows that decode (one new token) and rows that prefill (many), side by side. On TPU
JAX's own ragged paged attention kernel does the work; elsewhere each token's pages are gathered.

Shapes: T new tokens of all rows, one after another; R rows, M pages in a row's table; P pages of S slots in the pool;
H query heads, N key/value heads, D head_dim.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels.platform import platform
from stepaudio_jax.kernels.visibility import MASKED

KERNEL_HEAD_DIM = 128
AT_ONCE = 8
"""Tokens whose pages are gathered together."""


def paged_attention(
    q: Float[Array, "T H D"],
    kv_pages: Float[Array, "P S 2*N D"],
    kv_lengths: Int[Array | np.ndarray, " R"],
    page_table: Int[Array | np.ndarray, "R M"],
    q_starts: Int[Array | np.ndarray, " R+1"],
    num_rows: Int[Array | np.ndarray, " 1"],
    *,
    scale: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    implementation: Literal["pallas_tpu", "xla"] | None = None,
) -> Float[Array, "T H D"]:
    """Each row's new tokens attend to the row's whole cache up to themselves; tokens of no row give 0.

    Args:
      kv_pages: the pool, the key and the value of each head alternating; the new tokens' are already in it
        (`write_pages`).
      kv_lengths: tokens of each row, the new ones included.
      page_table: the pages of each row; entries past its length may be any page.
      q_starts: row r's new tokens are q[q_starts[r] : q_starts[r + 1]], the last of its tokens.
      num_rows: how many of the R rows there are.
      scale: defaults to D^−0.5.
      k_scale, v_scale: what quantised keys and values are to be multiplied by.
      implementation: "pallas_tpu" or "xla"; by default what suits the platform.

    Raises:
      ValueError: shapes that do not fit together, or a head_dim that the TPU kernel lacks when it is asked for.
    """
    q, kv_pages = jnp.asarray(q), jnp.asarray(kv_pages)
    kv_lengths, page_table, q_starts, num_rows = map(jnp.asarray, (kv_lengths, page_table, q_starts, num_rows))
    _check(q, kv_pages, kv_lengths, page_table, q_starts, num_rows)
    if implementation not in (None, "pallas_tpu", "xla"):
        raise ValueError(f'implementation: expected "pallas_tpu", "xla" or None, found {implementation!r}')
    if implementation == "pallas_tpu" and q.shape[2] != KERNEL_HEAD_DIM:
        raise ValueError(f"head_dim: the TPU kernel expects {KERNEL_HEAD_DIM}, found {q.shape[2]}")
    suits = platform() == "tpu" and q.shape[2] == KERNEL_HEAD_DIM
    attend = _library if implementation == "pallas_tpu" or (implementation is None and suits) else _gathered
    scale = float(q.shape[2] ** -0.5) if scale is None else scale
    out = attend(q, kv_pages, kv_lengths, page_table, q_starts, num_rows, scale, k_scale, v_scale)
    in_a_row = jnp.arange(q.shape[0]) < q_starts[num_rows[0]]
    return jnp.where(in_a_row[:, None, None], out, 0)


def _library(q, kv_pages, kv_lengths, page_table, q_starts, num_rows, scale, k_scale, v_scale):
    # Keys of about 512 slots at a time, in at most 16 pages, which fill the kernel's scalar registers.
    pages = min(max(512 // kv_pages.shape[1], 1), 16, page_table.shape[1])
    return ragged_paged_attention(
        *(q, kv_pages, kv_lengths, page_table, q_starts, num_rows),
        sm_scale=scale,
        k_scale=k_scale,
        v_scale=v_scale,
        num_kv_pages_per_block=pages,
        num_queries_per_block=32,
    )


def _gathered(q, kv_pages, kv_lengths, page_table, q_starts, num_rows, scale, k_scale, v_scale):
    heads, dim = q.shape[1:]
    kv_heads = kv_pages.shape[2] // 2
    rows = jnp.clip(jnp.searchsorted(q_starts[1:], jnp.arange(q.shape[0]), side="right"), 0, num_rows[0] - 1)
    positions = kv_lengths[rows] - q_starts[rows + 1] + jnp.arange(q.shape[0])

    def token(inputs):
        query, row, position = inputs
        slots = kv_pages[page_table[row]].reshape(-1, kv_heads, 2, dim)
        keys, values = (slots[:, :, i].astype(query.dtype) for i in range(2))
        grouped = query.reshape(kv_heads, -1, dim)
        scores = jnp.einsum("ngd,snd->ngs", grouped, keys, preferred_element_type=jnp.float32)
        seen = jnp.arange(slots.shape[0]) <= position
        weights = jax.nn.softmax(jnp.where(seen, scores * (scale * (k_scale or 1.0)), MASKED), axis=-1)
        values = jnp.where(seen[:, None, None], values, 0)  # a page never written may hold anything
        out = jnp.einsum("ngs,snd->ngd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return (out * (v_scale or 1.0)).reshape(heads, dim).astype(query.dtype)

    return jax.lax.map(token, (q, rows, positions), batch_size=AT_ONCE)


def write_pages(
    kv_pages: Float[Array, "P S 2*N D"],
    k: Float[Array, "T N D"],
    v: Float[Array, "T N D"],
    slots: Int[Array, " T"],
) -> Float[Array, "P S 2*N D"]:
    """The pool with new tokens' keys and values in it, token t in slot slots[t] % S of page slots[t] // S; tokens whose
    slot is P · S or more are dropped."""
    pages, size, combined, dim = kv_pages.shape
    new = jnp.stack([k, v], 2).reshape(-1, combined, dim).astype(kv_pages.dtype)
    flat = kv_pages.reshape(pages * size, combined, dim).at[slots].set(new, mode="drop")
    return flat.reshape(kv_pages.shape)


def _check(q, kv_pages, kv_lengths, page_table, q_starts, num_rows):
    rows = page_table.shape[0]
    if q.ndim != 3 or kv_pages.ndim != 4:
        raise ValueError(
            "q and kv_pages: expected [tokens, heads, head_dim] and [pages, slots, 2 · key/value heads, head_dim], "
            f"found {q.shape} and {kv_pages.shape}"
        )
    if q.shape[2] != kv_pages.shape[3]:
        raise ValueError(f"q and kv_pages: expected the same head_dim, found {q.shape[2]} and {kv_pages.shape[3]}")
    if kv_pages.shape[2] % 2 or q.shape[1] % (kv_pages.shape[2] // 2):
        raise ValueError(
            f"heads: expected a multiple of {kv_pages.shape[2]} / 2 key/value heads, found {q.shape[1]} query heads"
        )
    expected = {"kv_lengths": (kv_lengths, (rows,)), "q_starts": (q_starts, (rows + 1,)), "num_rows": (num_rows, (1,))}
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} for a table of {rows} rows, found {array.shape}")
