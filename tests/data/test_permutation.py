"""The permutation against what a permutation is, and against chance."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.data.permutation import permute


@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 5))
def test_every_number_once(n, seed, epoch):
    places = np.arange(n, dtype=np.uint64)
    found = permute(places, n, (seed, epoch))
    assert sorted(found.tolist()) == list(range(n))
    some = places[::3]
    np.testing.assert_array_equal(permute(some, n, (seed, epoch)), found[::3])  # place by place, not as a whole


def test_large_sets_need_no_list():
    n = 10**11
    found = permute(np.arange(10_000, dtype=np.uint64), n, (1,))
    assert len(set(found.tolist())) == 10_000 and found.max() < n
    # Uniform: the mean of 10,000 lies within five standard errors.
    assert abs(found.mean() / n - 0.5) < 5 * np.sqrt(1 / 12 / 10_000)


def test_places_and_seeds_are_as_if_by_chance():
    """Over 4,000 seeds, each number of ten is equally often at each place: chi-square, 81 degrees of freedom."""
    tables = np.zeros((10, 10))
    places = np.arange(10, dtype=np.uint64)
    for seed in range(4000):
        tables[places.astype(int), permute(places, 10, (seed,)).astype(int)] += 1
    assert ((tables - 400) ** 2 / 400).sum() < 81 + 5 * np.sqrt(2 * 81)


def test_neighbours_part():
    """Lag-one correlation of a shuffled range vanishes, within five standard errors."""
    found = permute(np.arange(20_000, dtype=np.uint64), 20_000, (3,)).astype(float)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(20_000)
