"""The interval of keys that each query sees, and the bounds of blocks, against all pairs written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.kernels.visibility import block_bounds, visible_keys, visited_blocks


def runs(rng, length, ids):
    cuts = np.sort(rng.integers(0, length + 1, len(ids) - 1))
    return np.repeat(ids, np.diff(np.concatenate([[0], cuts, [length]])))


@settings(max_examples=60)
@given(
    st.sampled_from([1, 8, 37]),  # few shapes: each is compiled
    st.sampled_from([1, 37, 60]),
    st.booleans(),
    st.booleans(),
    st.integers(-20, 40),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_intervals_are_the_definition(q_len, kv_len, causal, packed, ahead, stride, seed):
    rng = np.random.default_rng(seed)
    arguments = {"causal": causal, "q_offset": np.array([ahead, 3]), "kv_offset": 2, "position_stride": stride}
    seen = np.ones((2, q_len, kv_len), bool)
    if causal:
        positions = np.array([[ahead], [3]]) + np.arange(q_len) * stride
        seen &= positions[:, :, None] >= 2 + np.arange(kv_len) * stride
    if packed:
        q_ids, kv_ids = (np.stack([runs(rng, n, rng.permutation(5)) for _ in range(2)]) for n in (q_len, kv_len))
        if q_len == kv_len:
            kv_ids = q_ids
        arguments |= {"q_segment_ids": q_ids, "kv_segment_ids": kv_ids}
        seen &= (q_ids[:, :, None] == kv_ids[:, None]) & (q_ids[:, :, None] != 0)
    visible = visible_keys(2, q_len, kv_len, **arguments)
    j = np.arange(kv_len)
    start, stop = (np.asarray(x)[..., None] for x in visible)
    np.testing.assert_array_equal((j >= start) & (j < stop), seen)

    block = 8
    bounds = np.stack(block_bounds(visible, block))  # [4, batch, blocks]
    for i in range(bounds.shape[2]):
        first, end, full_first, full_end = bounds[:, :, i]
        rows = seen[:, i * block : (i + 1) * block]
        for b in range(2):
            outside = np.ones(kv_len, bool)
            outside[first[b] : end[b]] = False
            assert not rows[b][:, outside].any()
            assert rows[b][:, full_first[b] : max(full_end[b], full_first[b])].all()
            if rows[b].any():
                found = np.flatnonzero(rows[b].any(0))
                assert (first[b], end[b]) == (found[0], found[-1] + 1)
            else:
                assert end[b] == 0


@pytest.mark.parametrize(("lengths", "expected"), [([256], 3), ([128, 128], 2), ([100, 28, 128], 2), ([100, 156], 3)])
def test_visited_blocks_of_a_packed_row(lengths, expected):
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
    visible = visible_keys(1, 256, 256, causal=True, q_segment_ids=ids, kv_segment_ids=ids)
    assert visited_blocks(visible, 128, 128) == expected
