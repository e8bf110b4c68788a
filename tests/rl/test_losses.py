"""The losses against closed forms, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.rl.losses import Clip, adapted, importance, kl, log_ratio, surrogate, value_loss, weights


def log_of(*ratios):
    return jnp.log(jnp.array([ratios], jnp.float32))


def grad(fn, at):
    return np.asarray(jax.grad(lambda x: fn(x).sum())(at))[0]


OLD = log_of(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
NEW = log_of(1.1, 1.5, 0.5, 1.5, 0.5, 5.0)
ADVANTAGES = jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])


def test_the_surrogate_takes_the_worse_of_the_two():
    loss, clipped = surrogate(NEW, OLD, ADVANTAGES)
    np.testing.assert_allclose(loss, [[-1.1, -1.2, -0.5, 1.5, 0.8, 5.0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[False, True, False, False, True, False]])
    slopes = grad(lambda x: surrogate(x, OLD, ADVANTAGES)[0], NEW)
    np.testing.assert_allclose(slopes, [-1.1, 0, -0.5, 1.5, 0, 5.0], rtol=1e-6)


def test_unequal_clips_and_the_dual_one():
    loss, _ = surrogate(NEW, OLD, ADVANTAGES, Clip(0.2, 0.28))
    np.testing.assert_allclose(loss, [[-1.1, -1.28, -0.5, 1.5, 0.8, 5.0]], rtol=1e-6)
    loss, clipped = surrogate(NEW, OLD, ADVANTAGES, Clip(dual=3.0))
    np.testing.assert_allclose(loss, [[-1.1, -1.2, -0.5, 1.5, 0.8, 3.0]], rtol=1e-6)
    assert clipped[0, 5] and grad(lambda x: surrogate(x, OLD, ADVANTAGES, Clip(dual=3.0))[0], NEW)[5] == 0


@pytest.mark.parametrize("wrong", [{"low": -0.1}, {"low": 1.5}, {"high": -1}, {"dual": 1.1}])
def test_clips_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="clip"):
        Clip(**wrong)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    np.testing.assert_allclose(grad(lambda x: surrogate(x, OLD, ADVANTAGES)[0], OLD), -np.asarray(ADVANTAGES)[0])


def test_ratios_beyond_all_bounds_stay_finite():
    far = jnp.array([[0.0, -1e4, 1e4]])
    for fn in (lambda x: surrogate(x, far, jnp.ones((1, 3)))[0], lambda x: kl(x, far), lambda x: kl(x, far, "k3")):
        assert np.isfinite(fn(jnp.zeros((1, 3)))).all() and np.isfinite(grad(fn, jnp.zeros((1, 3)))).all()
    np.testing.assert_array_equal(log_ratio(jnp.zeros(3), far[0]), [0, 20, -20])


def test_value_loss_is_clipped_around_the_old_value():
    values, old, returns = (jnp.array([x], jnp.float32) for x in ([0.5, 0.5, 1.5], [0.0, 0.0, 1.0], [1.0, 0.1, 0.0]))
    free, _ = value_loss(values, old, returns, None)
    np.testing.assert_allclose(free, [[0.125, 0.08, 1.125]], rtol=1e-6)
    loss, clipped = value_loss(values, old, returns, 0.2)
    np.testing.assert_allclose(loss, [[0.32, 0.08, 1.125]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[True, False, False]])
    np.testing.assert_allclose(grad(lambda x: value_loss(x, old, returns, 0.2)[0], values), [0, 0.4, 1.5], rtol=1e-6)


def test_kl_estimators_against_the_true_kl_of_two_distributions():
    """Values and gradients in expectation, over all tokens of a vocabulary: exact, no sampling."""
    rng = np.random.default_rng(0)
    logits, reference = (jnp.asarray(rng.normal(size=7), jnp.float32) for _ in range(2))
    ref = jax.nn.log_softmax(reference)

    def exact(logits):
        log_p = jax.nn.log_softmax(logits)
        return (jnp.exp(log_p) * (log_p - ref)).sum()

    p = jax.nn.softmax(logits)

    def expected(estimator):
        """Of a loss on tokens that p has drawn: p is no part of the graph."""
        return lambda logits: (p * kl(jax.nn.log_softmax(logits), ref, estimator)).sum()

    true = float(exact(logits))
    for estimator in ("k1", "k3", "k3+"):
        assert float(expected(estimator)(logits)) == pytest.approx(true, rel=1e-5)
    slope = np.asarray(jax.grad(exact)(logits))
    for estimator in ("k2", "k3+"):
        np.testing.assert_allclose(jax.grad(expected(estimator))(logits), slope, atol=1e-6)
    np.testing.assert_allclose(jax.grad(expected("k1"))(logits), 0, atol=1e-6)
    reverse = jax.grad(lambda logits: (jnp.exp(ref) * (ref - jax.nn.log_softmax(logits))).sum())(logits)
    np.testing.assert_allclose(jax.grad(expected("k3"))(logits), reverse, atol=1e-6)
    with pytest.raises(ValueError, match='kl: expected one of "k1"'):
        kl(ref, ref, "k4")


def test_the_weight_of_a_kl_adapts():
    assert adapted(2.0, 0.1, 0.1) == 2.0
    assert adapted(1.0, 0.11, 0.1) == pytest.approx(1.01)
    assert adapted(1.0, 9.0, 0.1) == pytest.approx(1.02) and adapted(1.0, 0.0, 0.1) == pytest.approx(0.98)


def test_importance_is_truncated_and_gives_no_gradient():
    found = importance(log_of(1.0, 3.0, 0.1), log_of(1.0, 1.0, 1.0), 2.0)
    np.testing.assert_allclose(found, [[1.0, 2.0, 0.1]], rtol=1e-6)
    assert not grad(lambda x: importance(x, OLD), NEW).any()


def test_weights_add_up_to_one_and_do_not_depend_on_the_cut():
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 4, (6, 30)), axis=1)
    mask = (rng.random((6, 30)) < 0.6) & (ids > 0)
    losses = rng.normal(size=(6, 30))
    by_token = np.asarray(weights(mask, ids))
    assert by_token.sum() == pytest.approx(1, abs=1e-5) and not by_token[~mask].any()
    assert (by_token * losses).sum() == pytest.approx(losses[mask].mean(), abs=1e-5)
    means = [losses[row][m].mean() for row in range(6) for s in (1, 2, 3) if (m := mask[row] & (ids[row] == s)).any()]
    by_sequence = np.asarray(weights(mask, ids, "sequence"))
    assert (by_sequence * losses).sum() == pytest.approx(np.mean(means), abs=1e-5)
    assert np.isfinite(weights(np.zeros_like(mask), ids, "sequence")).all()
    with pytest.raises(ValueError, match="aggregation"):
        weights(mask, ids, "mean")
