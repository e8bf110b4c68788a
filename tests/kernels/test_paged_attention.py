"""Attention over a paged cache against plain attention over each row, and JAX's kernel against both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from stepaudio_jax.kernels import paged_attention, write_pages

by_xla = jax.jit(functools.partial(paged_attention, implementation="xla"))


def pool(rng, lengths, new, *, heads, kv_heads, dim, page, tokens, width=None, dtype=np.float32):
    """A pool in which the rows' pages are dealt out at random; slots never written hold NaN, as fresh memory may."""
    table_width = width or -(-max(lengths) // page) + 1
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
    q = np.concatenate([q[len(q) - n :] for (q, _, _), n in zip(rows, new, strict=True)])
    q = jnp.concatenate([q, jnp.ones((tokens - len(q), heads, dim), dtype)])  # tokens of no row
    starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
    arguments = q, cache, np.array(lengths, np.int32), table, starts, np.array([len(lengths)], np.int32)
    expected = [alone(*(np.asarray(x, np.float64) for x in row))[-n:] for row, n in zip(rows, new, strict=True)]
    return arguments, np.concatenate(expected)


def alone(q, k, v):
    """Causal attention of one row, [L, heads, dim], in numpy."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * np.tri(len(q))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=3), st.integers(0, 99))
def test_gathered_pages(rows, seed):
    lengths = [max(a, b) for a, b in rows]
    new = [min(a, b) for a, b in rows]
    sizes = {"heads": 4, "kv_heads": 2, "dim": 16, "page": 8, "tokens": 121, "width": 6}
    arguments, expected = pool(np.random.default_rng(seed), lengths, new, **sizes)
    out = by_xla(*arguments)
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-6)
    assert not np.any(out[len(expected) :])


def test_rows_that_are_not_there_are_not_read():
    (q, cache, lengths, table, starts, _), expected = pool(
        np.random.default_rng(0), [20, 9, 30], [1, 1, 1], heads=2, kv_heads=1, dim=16, page=8, tokens=5
    )
    lengths[2], table[2] = 10**6, 10**6
    out = paged_attention(q, cache, lengths, table, starts, np.array([2], np.int32))
    np.testing.assert_allclose(out[:2], expected[:2], atol=2e-6)
    assert not np.any(out[2:])


def test_the_library_means_the_same():
    """JAX's kernel cannot be interpreted; its own plain form takes the same arguments."""
    sizes = {"heads": 4, "kv_heads": 2, "dim": 128, "page": 16, "tokens": 80}
    arguments, expected = pool(np.random.default_rng(1), [70, 200, 33], [70, 1, 5], **sizes)
    arguments = [jnp.nan_to_num(jnp.asarray(x)) for x in arguments]
    library = ref_ragged_paged_attention(*arguments, sm_scale=128**-0.5)
    np.testing.assert_allclose(library[: len(expected)], expected, atol=3e-6)
    np.testing.assert_allclose(by_xla(*arguments)[: len(expected)], expected, atol=3e-6)


def test_quantised_pages():
    sizes = {"heads": 2, "kv_heads": 2, "dim": 16, "page": 8, "tokens": 2}
    (q, cache, *rest), _ = pool(np.random.default_rng(2), [30, 8], [1, 1], **sizes)
    cache = jnp.nan_to_num(cache)
    scale = 0.03
    int8 = jnp.round(cache / scale).astype(jnp.int8)
    np.testing.assert_allclose(
        paged_attention(q, int8, *rest, k_scale=scale, v_scale=scale),
        paged_attention(q, int8.astype(jnp.float32) * scale, *rest),
        atol=1e-6,
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
        ({"q": np.zeros((2, 4))}, r"q and kv_pages: expected .*found \(2, 4\)"),
        ({"q": np.zeros((2, 4, 32))}, "same head_dim, found 32 and 16"),
        ({"q": np.zeros((2, 3, 16))}, "heads: expected a multiple of 4 / 2 key/value heads, found 3"),
        ({"kv_lengths": np.zeros(3, int)}, r"kv_lengths: expected shape \(2,\) for a table of 2 rows, found \(3,\)"),
        ({"q_starts": np.zeros(2, int)}, r"q_starts: expected shape \(3,\)"),
        ({"implementation": "pallas_tpu"}, "head_dim: the TPU kernel expects 128, found 16"),
        ({"implementation": "cudnn"}, "implementation: expected .*found 'cudnn'"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "q": np.zeros((2, 4, 16)),
        "kv_pages": np.zeros((6, 8, 4, 16)),
        "kv_lengths": np.ones(2, int),
        "page_table": np.zeros((2, 3), int),
        "q_starts": np.arange(3),
        "num_rows": np.array([2]),
    }
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments | change)
