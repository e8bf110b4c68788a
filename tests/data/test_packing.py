"""Packing: every record once, no row too full, hardly any room left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.data.packing import pack

CAPACITY = 10_240


@given(st.integers(1, 300).flatmap(lambda cap: st.tuples(st.lists(st.integers(1, cap), max_size=200), st.just(cap))))
def test_every_index_once_and_no_row_too_full(case):
    lengths, capacity = np.array(case[0], int), case[1]
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= capacity for row in rows)
    # Best fit opens a row only when none has room, so no two rows fit into one.
    room = sorted(lengths[row].sum() for row in rows)
    assert len(rows) < 2 or room[0] + room[1] > capacity


@given(st.lists(st.integers(1, 50), max_size=60))
def test_each_record_goes_where_it_leaves_the_least_room(lengths):
    """Against best fit decreasing written out: the same rows up to which of two equally full ones took a record."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        best = max((i for i, row in enumerate(rows) if row + length <= 50), key=lambda i: rows[i], default=None)
        if best is None:
            rows.append(length)
        else:
            rows[best] += length
    ours = [sum(lengths[i] for i in row) for row in pack(np.array(lengths, int), 50)]
    assert sorted(ours) == sorted(rows)


def test_a_perfect_packing_is_found():
    """Triples that fill a row exactly, in any order: the halves first, then their thirds and sixths."""
    lengths = np.random.default_rng(0).permutation(np.repeat([1500, 1000, 500], 40))
    assert len(pack(lengths, 3000)) == 40


@pytest.mark.parametrize(
    "lengths",
    [
        np.random.default_rng(0).lognormal(6, 0.8, 16_384).clip(50, 4000),
        np.random.default_rng(0).uniform(300, 1500, 16_384),
        np.random.default_rng(0).lognormal(8, 0.7, 16_384).clip(50, CAPACITY),
    ],
    ids=["dialogues", "clips", "long thoughts"],
)
def test_realistic_windows_are_97_percent_full(lengths):
    lengths = lengths.astype(int)
    assert lengths.sum() / (len(pack(lengths, CAPACITY)) * CAPACITY) >= 0.97


def test_lengths_that_fit_no_row_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 10 tokens, found 11 at 2"):
        pack(np.array([3, 10, 11]), 10)
    with pytest.raises(ValueError, match="found 0 at 0"):
        pack(np.array([0]), 10)
