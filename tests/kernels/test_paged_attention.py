"""Attention over a paged cache against plain attention over each row, and JAX's kernel against both."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from stepaudio_jax.kernels import paged_attention, write_pages

by_xla = jax.jit(functools.partial(paged_attention, implementation="xla"))


def pool(rng, lengths, new, *, heads, kv_heads, dim, page, tokens, dtype=np.float32):
    """A pool in which the rows' pages are dealt out at random; slots never written hold NaN, as fresh memory may.

    Args:
      lengths, new: tokens of each row, and how many of them are new; their queries are padded to `tokens`.
    """
    table_width = -(-max(lengths) // page) + 1
    pages = rng.permutation(len(lengths) * table_width)
    table = pages.reshape(len(lengths), table_width).astype(np.int32)
    cache = jnp.full((pages.size, page, 2 * kv_heads, dim), np.nan, dtype)
    rows = [
        [np.asarray(rng.standard_normal((length, n, dim)), dtype) for n in (heads, kv_heads, kv_heads)]
        for length in lengths
    ]
    k, v = (np.concatenate([row[i] for row in rows]) for i in (1, 2))
    at = [(line[p // page] * page + p % page) for line, n in zip(table, lengths, strict=True) for p in range(n)]
    cache = write_pages(cache, k, v, np.array(at))
    q = np.ones((len(rows), tokens, heads, dim), dtype)
    for line, (row, n) in enumerate(zip(rows, new, strict=True)):
        q[line, :n] = row[0][len(row[0]) - n :]
    starts, counts = np.subtract(lengths, new).astype(np.int32), np.array(new, np.int32)
    expected = [alone(*(np.asarray(x, np.float64) for x in row))[-n:] for row, n in zip(rows, new, strict=True)]
    return (q, cache, starts, counts, table), expected


def alone(q, k, v):
    """Causal attention of one row, [L, heads, dim], in numpy."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(len(q))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)


def same(out, expected, atol):
    for line, row in zip(out, expected, strict=True):
        np.testing.assert_allclose(line[: len(row)], row, atol=atol)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=3, max_size=3), st.integers(0, 99))
def test_gathered_pages(rows, seed):
    """More slots than are gathered at once, few and many new tokens."""
    lengths = [max(a, b) for a, b in rows]
    new = [min(a, b) for a, b in rows]
    sizes = {"heads": 4, "kv_heads": 2, "dim": 16, "page": 8}
    arguments, expected = pool(np.random.default_rng(seed), lengths, new, tokens=40, **sizes)
    same(by_xla(*arguments), expected, 2e-6)
    arguments, expected = pool(np.random.default_rng(seed), lengths, [1, 1, 1], tokens=1, **sizes)
    same(by_xla(*arguments), expected, 2e-6)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=32, max_size=32), st.integers(0, 99))
def test_many_rows_of_different_lengths(lengths, seed):
    """Long rows and short ones, in any order, some of which are not there."""
    lengths = [*lengths, 401]
    sizes = {"heads": 4, "kv_heads": 2, "dim": 16, "page": 8}
    (q, cache, starts, counts, table), expected = pool(
        np.random.default_rng(seed), lengths, [1] * len(lengths), tokens=1, **sizes
    )
    absent = np.arange(len(lengths)) % 5 == seed % 5
    out = by_xla(q, cache, starts, np.where(absent, 0, counts), table)
    assert not np.any(out[absent])
    same(out[~absent], [row for row, gone in zip(expected, absent, strict=True) if not gone], 2e-6)


@pytest.mark.parametrize("longest", [700, 1_500])
def test_on_a_gpu(monkeypatch, longest):
    """There as many pages are gathered at once as there are, or 1,024 slots."""
    monkeypatch.setattr(importlib.import_module("stepaudio_jax.kernels.paged_attention"), "platform", lambda: "gpu")
    lengths = [longest, *range(1, 40, 4)]
    for new, tokens in ((1, 1), (20, 20)):
        (q, *rest), expected = pool(
            np.random.default_rng(0), lengths, [min(new, n) for n in lengths],
            heads=4, kv_heads=2, dim=16, page=8, tokens=tokens,
        )  # fmt: skip
        program = jax.jit(functools.partial(paged_attention, implementation="xla")).lower(q, *rest)
        assert ("while" in program.as_text()) == (longest > 1_024)
        same(program.compile()(q, *rest), expected, 2e-6)


def test_pieces_of_one_row_beside_each_other():
    """A row's tokens cut into pieces, each a line of its own with the row's pages."""
    (q, cache, _, _, table), expected = pool(
        np.random.default_rng(0), [100], [90], heads=4, kv_heads=2, dim=16, page=8, tokens=90
    )
    pieces = q[0].reshape(9, 10, *q.shape[2:])
    out = by_xla(pieces, cache, 10 * np.arange(1, 10), np.full(9, 10), np.repeat(table, 9, 0))
    same(np.reshape(out, (1, 90, *q.shape[2:])), expected, 2e-6)


def test_rows_that_are_not_there_are_not_read():
    (q, cache, starts, counts, table), expected = pool(
        np.random.default_rng(0), [20, 9, 30], [1, 1, 1], heads=2, kv_heads=1, dim=16, page=8, tokens=2
    )
    starts[2], counts[2], table[2] = 10**6, 0, 10**6
    out = paged_attention(q, cache, starts, counts, table)
    same(out[:2], expected[:2], 2e-6)
    assert not np.any(out[2])


def test_the_library_means_the_same():
    """JAX's kernel cannot be interpreted; its own plain form takes what ours hands it."""
    sizes = {"heads": 4, "kv_heads": 2, "dim": 128, "page": 16, "tokens": 70}
    (q, cache, starts, counts, table), expected = pool(np.random.default_rng(1), [70, 200, 33], [70, 1, 5], **sizes)
    table = np.pad(table, ((0, 0), (0, 8)))  # padding of the queries reaches past a row's pages
    flat = jnp.asarray(q).reshape(-1, 4, 128), jnp.nan_to_num(cache), starts + 70, table
    ends, three = np.arange(4, dtype=np.int32) * 70, np.array([3], np.int32)
    library = ref_ragged_paged_attention(*flat, ends, three, sm_scale=128**-0.5)
    same(library.reshape(q.shape), expected, 3e-6)
    same(by_xla(q, cache, starts, counts, table), expected, 3e-6)


def test_pages_of_integers():
    sizes = {"heads": 2, "kv_heads": 2, "dim": 16, "page": 8, "tokens": 1}
    (q, cache, *rest), _ = pool(np.random.default_rng(2), [30, 8], [1, 1], **sizes)
    int8 = jnp.round(jnp.nan_to_num(cache) / 0.03).astype(jnp.int8)
    np.testing.assert_allclose(
        paged_attention(q, int8, *rest), paged_attention(q, int8.astype(jnp.float32), *rest), atol=1e-6
    )


def test_slots_out_of_the_pool_are_dropped():
    cache = jnp.zeros((2, 4, 2, 8))
    one = jnp.ones((3, 1, 8))
    out = write_pages(cache, one, 2 * one, jnp.array([5, 8, 100]))
    assert np.flatnonzero(out.reshape(8, -1).any(-1)).tolist() == [5]
    np.testing.assert_array_equal(out[1, 1], [[1] * 8, [2] * 8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((2, 4))}, r"q, kv_pages and page_table: expected .*found \(2, 4\)"),
        ({"q": np.zeros((2, 1, 4, 32))}, "same head_dim, found 32 and 16"),
        ({"q": np.zeros((2, 1, 3, 16))}, "heads: expected a multiple of 4 / 2 key/value heads, found 3"),
        ({"starts": np.zeros(3, int)}, r"starts: expected 2 rows, as q has, found \(3,\)"),
        ({"counts": np.zeros(3, int)}, r"counts: expected 2 rows"),
        ({"implementation": "pallas_tpu"}, "head_dim: the TPU kernel expects 128, found 16"),
        ({"implementation": "cudnn"}, "implementation: expected .*found 'cudnn'"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "q": np.zeros((2, 1, 4, 16)),
        "kv_pages": np.zeros((6, 8, 4, 16)),
        "starts": np.ones(2, int),
        "counts": np.ones(2, int),
        "page_table": np.zeros((2, 3), int),
    }
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments | change)
