"""Attention against a plain float64 softmax written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.kernels import decode_attention, flash_attention
from stepaudio_jax.kernels.attention import QUERY_BLOCK


def reference(q, k, v, causal, q_ids=None, kv_ids=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    seen = np.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    if causal:
        seen &= np.tril(np.ones(seen.shape[1:], bool))
    if q_ids is not None:
        seen &= (q_ids[:, :, None] == kv_ids[:, None]) & (kv_ids[:, None] != 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen[:, None]
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def arrays(rng, batch, q_len, k_len, heads, kv_heads, dim):
    def make(length, n):
        return rng.standard_normal((batch, length, n, dim), np.float32)

    return make(q_len, heads), make(k_len, kv_heads), make(k_len, kv_heads)


@settings(max_examples=20)
@given(
    st.integers(1, 40), st.integers(1, 3), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.booleans(), st.integers(0, 99)
)
def test_packed_rows(length, segments, heads, causal, seed):
    rng = np.random.default_rng(seed)
    q, k, v = arrays(rng, 2, length, length, *heads, 8)
    ids = np.sort(rng.integers(0, segments + 1, (2, length)), axis=1).astype(np.int32)
    out = flash_attention(q, k, v, causal=causal, q_segment_ids=ids, kv_segment_ids=ids)
    np.testing.assert_allclose(out, reference(q, k, v, causal, ids, ids), atol=2e-6)


@pytest.mark.parametrize("length", [QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 77])
def test_blocks_of_queries(length):
    q, k, v = arrays(np.random.default_rng(0), 1, length, length, 2, 1, 8)
    ids = np.ones((1, length), np.int32)
    ids[:, length // 2 :] = 2
    np.testing.assert_allclose(flash_attention(q, k, v, causal=True), reference(q, k, v, True), atol=2e-6)
    out = flash_attention(q, k, v, causal=True, q_segment_ids=ids, kv_segment_ids=ids)
    np.testing.assert_allclose(out, reference(q, k, v, True, ids, ids), atol=2e-6)


def test_a_row_that_sees_nothing_gives_zero_and_no_gradient():
    q, k, v = arrays(np.random.default_rng(0), 1, 4, 4, 2, 2, 8)
    ids = np.array([[1, 1, 0, 0]], np.int32)

    def loss(q, k, v):
        return flash_attention(q, k, v, causal=True, q_segment_ids=ids, kv_segment_ids=ids).sum()

    out = flash_attention(q, k, v, causal=True, q_segment_ids=ids, kv_segment_ids=ids)
    assert not np.any(out[:, 2:])
    for grad in jax.grad(loss, argnums=(0, 1, 2))(q, k, v):
        assert np.all(np.isfinite(grad)) and not np.any(grad[:, 2:])


@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=15)
def test_decoding_against_a_cache(start, new, seed):
    rng = np.random.default_rng(seed)
    length = 12
    q, k, v = arrays(rng, 2, length, length, 4, 2, 8)
    positions = np.stack([start + np.arange(new), 1 + np.arange(new)])
    rows = np.stack([q[i, positions[i]] for i in range(2)])
    cache = [jnp.asarray(x.transpose(0, 2, 1, 3)) for x in (k, v)]
    expected = reference(q, k, v, True)
    out = decode_attention(rows, *cache, positions)
    np.testing.assert_allclose(out, np.stack([expected[i, positions[i]] for i in range(2)]), atol=2e-6)


def test_bfloat16_is_no_worse_than_the_library():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays(np.random.default_rng(0), 2, 96, 96, 4, 2, 32))
    truth = reference(*(np.asarray(x, np.float32) for x in (q, k, v)), True)
    ours = np.abs(np.asarray(flash_attention(q, k, v, causal=True), np.float64) - truth).mean()
    library = np.abs(np.asarray(jax.nn.dot_product_attention(q, k, v, is_causal=True), np.float64) - truth).mean()
    assert ours <= 1.1 * library


@pytest.mark.parametrize(
    ("shapes", "ids", "message"),
    [
        (((1, 4, 3, 8), (1, 4, 2, 8)), {}, "heads: expected a multiple of 2"),
        (((1, 4, 2, 8), (2, 4, 2, 8)), {}, "same batch"),
        (((1, 4, 2, 8), (1, 4, 2, 8)), {"q_segment_ids": np.ones((1, 4), int)}, "give both or neither"),
        (
            ((1, 4, 2, 8), (1, 4, 2, 8)),
            {"q_segment_ids": np.ones((1, 3), int), "kv_segment_ids": np.ones((1, 4), int)},
            r"q_segment_ids: expected shape \(1, 4\), found \(1, 3\)",
        ),
    ],
)
def test_mistakes_are_named(shapes, ids, message):
    q, k = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, k, causal=True, **ids)
