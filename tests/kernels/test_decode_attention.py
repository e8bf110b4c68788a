"""Attention of new tokens against a cache, against the definition over the whole sequence."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.kernels import decode_attention
from stepaudio_jax.kernels.reference import reference_attention


@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=15)
def test_decoding_against_a_cache(start, new, seed):
    rng = np.random.default_rng(seed)
    length = 12
    q, k, v = (rng.standard_normal((2, length, heads, 8), np.float32) for heads in (4, 2, 2))
    positions = np.stack([start + np.arange(new), 1 + np.arange(new)])
    rows = np.stack([q[i, positions[i]] for i in range(2)])
    cache = [jnp.asarray(x.transpose(0, 2, 1, 3)) for x in (k, v)]
    expected, _ = reference_attention(q, k, v, causal=True)
    out = decode_attention(rows, *cache, positions)
    np.testing.assert_allclose(out, np.stack([expected[i, positions[i]] for i in range(2)]), atol=2e-6)
