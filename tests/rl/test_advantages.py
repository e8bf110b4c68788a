"""Advantages against closed forms and a loop in plain Python; what stands between chosen tokens changes nothing."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.rl.advantages import at_last, gae, of_groups, whiten


def by_hand(rewards, values, gamma, lam):
    """Equation 11 of arXiv:1506.02438, in float64, of one segment."""
    deltas = rewards + gamma * np.append(values[1:], 0) - values
    return np.array([sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))])


@st.composite
def segments(draw):
    """A row of some segments, each with chosen and other places: (rewards, values, mask, ids, gamma, lam)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    ids = np.concatenate([np.full(size, i + 1) for i, size in enumerate(sizes)] + [np.zeros(draw(st.integers(0, 3)))])
    mask = (rng.random(len(ids)) < 0.7) & (ids > 0)
    rewards, values = rng.normal(size=(2, len(ids)))
    return rewards * mask, values, mask, ids.astype(int), draw(st.floats(0.5, 1)), draw(st.floats(0, 1))


@settings(deadline=None, max_examples=60)
@given(segments())
def test_gae_is_the_sum_of_equation_11_over_the_chosen_tokens(case):
    rewards, values, mask, ids, gamma, lam = case
    found, returns = gae(rewards[None], values[None], mask[None], ids[None], gamma=gamma, lam=lam)
    for segment in range(1, ids.max() + 1):
        own = mask & (ids == segment)
        expected = by_hand(rewards[own], values[own], gamma, lam)
        np.testing.assert_allclose(np.asarray(found)[0, own], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(returns)[0, own], expected + values[own], rtol=1e-5, atol=1e-5)
    assert not np.asarray(found)[0, ~mask].any() and not np.asarray(returns)[0, ~mask].any()


def test_with_one_reward_at_the_end_it_is_the_reward_less_the_value():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(3, 8)).astype(np.float32), np.arange(8) < np.array([[8], [5], [1]])
    ids = np.ones((3, 8), int)
    rewards = at_last(np.array([[0.8], [1.0], [0.2]], np.float32), mask, ids)
    found, returns = gae(rewards, values, mask, ids)
    np.testing.assert_allclose(found, np.where(mask, [[0.8], [1.0], [0.2]] - values, 0), atol=1e-6)
    np.testing.assert_allclose(returns, np.where(mask, [[0.8], [1.0], [0.2]], 0), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(segments(), st.integers(0, 2**32))
def test_tokens_that_nobody_chose_may_be_anywhere(case, seed):
    rewards, values, mask, ids, gamma, lam = case
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, int((ids > 0).sum()) + 1, 4))
    inside = np.concatenate([[ids[0]], ids])  # what is put before place i belongs to the segment before it
    more = [np.insert(x, at, y) for x, y in ((rewards, 0), (values, 77.0), (mask, False))]
    longer = [*more, np.insert(ids, at, inside[at])]
    chosen = longer[2]
    for before, after in zip(
        gae(*(x[None] for x in (rewards, values, mask, ids)), gamma=gamma, lam=lam),
        gae(*(x[None] for x in longer), gamma=gamma, lam=lam),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(before)[0, mask], np.asarray(after)[0, chosen])


def test_a_fraction_arrives_as_it_is_at_the_last_chosen_token():
    mask = np.array([[0, 1, 1, 0, 0, 1, 1, 0]], bool)
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    found = at_last(np.array([[0.8, 0.2, 0.0]], np.float32), mask, ids)
    assert found.dtype == np.float32
    expected = np.zeros((1, 8), np.float32)
    expected[0, 2], expected[0, 6] = np.float32(0.8), np.float32(0.2)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(at_last(np.ones((1, 3)), np.zeros((1, 8), bool), ids), np.zeros((1, 8)))


def test_whitening_counts_only_what_is_marked():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(3, 2, (5, 40)), rng.random((5, 40)) < 0.4
    white = np.asarray(whiten(x, mask))
    assert white[mask].mean() == pytest.approx(0, abs=1e-6) and white[mask].std(ddof=1) == pytest.approx(1, abs=1e-5)
    assert not white[~mask].any()
    padded = np.asarray(whiten(np.pad(x, ((0, 9), (0, 9)), constant_values=1e3), np.pad(mask, ((0, 9), (0, 9)))))
    np.testing.assert_allclose(padded[:5, :40], white, atol=1e-6)
    kept = np.asarray(whiten(x, mask, shift_mean=False))
    assert kept[mask].mean() == pytest.approx(x[mask].mean(), abs=1e-5)
    assert np.isfinite(whiten(x, np.zeros_like(mask))).all() and np.isfinite(whiten(np.ones(4), np.ones(4, bool))).all()


GROUPS = np.array([[1, 0, 0, 1], [0.8, 0.2, 1.0, 0.0], [1, 1, 1, 1], [0, 1, 0, 0]], np.float32)
ALL = np.ones_like(GROUPS, bool)


def test_grpo_is_the_papers_formula():
    mean, std = GROUPS.mean(1, keepdims=True), GROUPS.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(of_groups(GROUPS, ALL, "grpo"), (GROUPS - mean) / (std + 1e-4), atol=1e-6)
    np.testing.assert_allclose(of_groups(GROUPS, ALL, "grpo", scale=False), GROUPS - mean, atol=1e-6)


def test_rloo_leaves_one_out():
    others = np.array([[np.delete(row, i).mean() for i in range(4)] for row in GROUPS])
    np.testing.assert_allclose(of_groups(GROUPS, ALL, "rloo"), GROUPS - others, atol=1e-6)


def test_reinforce_whitens_over_the_batch():
    centred = GROUPS - GROUPS.mean(1, keepdims=True)
    np.testing.assert_allclose(
        of_groups(GROUPS, ALL, "reinforce++"), (centred - centred.mean()) / centred.std(ddof=1), atol=1e-5
    )


@pytest.mark.parametrize("baseline", ["grpo", "rloo", "reinforce++"])
def test_a_sample_without_a_reward_has_no_say(baseline):
    wide = np.concatenate([GROUPS, np.full((4, 1), 55.0, np.float32)], 1)
    valid = np.concatenate([ALL, np.zeros((4, 1), bool)], 1)
    found = np.asarray(of_groups(wide, valid, baseline))
    np.testing.assert_allclose(found[:, :4], of_groups(GROUPS, ALL, baseline), atol=1e-6)
    assert not found[:, 4].any()
    alone = np.asarray(of_groups(wide, np.arange(5) == np.full((4, 1), 2), baseline))
    assert not alone.any()


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match='baseline: expected one of "grpo"'):
        of_groups(GROUPS, ALL, "best")


def test_it_compiles_once_for_a_shape():
    compiled = jax.jit(gae)
    zeros = np.zeros((2, 6), np.float32)
    compiled(zeros, zeros, zeros > 0, np.ones((2, 6), int))
    assert compiled._cache_size() == 1
