"""Objectives against closed forms in numpy: DPO by its equation, z-loss, losses by source, chunks of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepaudio_jax import training
from stepaudio_jax.data import Batch
from stepaudio_jax.training.losses import TokenScores
from stepaudio_jax.training.objectives import DPO, NextToken, by_segment
from tests import small

rng = np.random.default_rng(0)
SEGMENTS = np.array([[1] * 4 + [2] * 3 + [3] * 2 + [4] * 3, [1] * 3 + [2] * 5 + [0] * 4], np.int32)
MASK = np.array([[0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]], bool)
SCORES = TokenScores(
    jnp.asarray(-rng.exponential(size=MASK.shape)),
    jnp.asarray(rng.normal(size=MASK.shape)),
    jnp.asarray(rng.random(MASK.shape) < 0.5),
)


def batch(**fields) -> Batch:
    ints = np.zeros_like(SEGMENTS)
    return Batch(**({"tokens": ints, "positions": ints, "segment_ids": SEGMENTS, "loss_mask": MASK} | fields))


def pairs_by_hand(log_probs, reference):
    """(row, better segment) → policy and reference log-probabilities of both replies."""
    found = []
    for row, first in ((0, 1), (0, 3), (1, 1)):
        both = [(SEGMENTS[row] == first + i) & MASK[row] for i in (0, 1)]
        found.append([[log_probs[row][own].sum() for own in both], [reference[row, first - 1 + i] for i in (0, 1)]])
    return np.array(found)


@pytest.mark.parametrize("smoothing, sft", [(0.0, 0.0), (0.2, 0.0), (0.0, 0.5)])
def test_dpo_is_equation_7(smoothing, sft):
    totals = rng.normal(size=(2, 4)) * 3  # of each segment, under the reference
    reference = np.zeros(MASK.shape, np.float32)
    for row, segments in enumerate(SEGMENTS):
        for segment in range(1, segments.max() + 1):
            reference[row, np.flatnonzero(segments == segment)[0]] = totals[row, segment - 1]
    objective, beta = DPO(beta=0.3, label_smoothing=smoothing, sft_weight=sft), 0.3
    data = batch(sources=SEGMENTS, audio=None, reference=reference)
    loss, sums = objective(SCORES, data, jnp.asarray(MASK))
    count = objective.count(data, jnp.asarray(MASK))
    metrics = objective.metrics(sums, count)

    policy, ref = pairs_by_hand(np.asarray(SCORES.log_probs), totals).swapaxes(0, 1)
    margin = beta * ((policy[:, 0] - ref[:, 0]) - (policy[:, 1] - ref[:, 1]))
    log_sigmoid = -np.log1p(np.exp(-margin))
    expected = -(1 - smoothing) * log_sigmoid + smoothing * np.log1p(np.exp(margin))
    tokens = np.array([(MASK[r] & (SEGMENTS[r] == s)).sum() for r, s in ((0, 1), (0, 3), (1, 1))])
    own = -policy[:, 0] / tokens
    assert float(count) == 3
    assert float(metrics["loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(loss / count) == pytest.approx((expected + sft * own).mean(), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((margin > 0).mean())
    assert float(metrics["reward_chosen"]) == pytest.approx(beta * (policy - ref)[:, 0].mean(), rel=1e-5)


def test_sums_by_segment():
    x = rng.normal(size=SEGMENTS.shape).astype(np.float32)
    found = np.asarray(by_segment(jnp.asarray(x), jnp.asarray(SEGMENTS)))
    assert found.shape == (2, 6)
    for row in range(2):
        for segment in range(1, 7):
            assert found[row, segment - 1] == pytest.approx(x[row][SEGMENTS[row] == segment].sum(), abs=1e-6)


def test_losses_by_source_and_z_loss():
    sources = np.where(SEGMENTS == 2, 1, 0)
    objective = NextToken(z_loss=0.1, sources=("cot", "plain", "absent"))
    data = batch(sources=sources, audio=None)
    loss, sums = objective(SCORES, data, jnp.asarray(MASK))
    count = objective.count(data, jnp.asarray(MASK))
    metrics = objective.metrics(sums, count)
    nll, squares = -np.asarray(SCORES.log_probs), np.asarray(SCORES.log_z) ** 2
    assert float(metrics["loss"]) == pytest.approx(nll[MASK].mean(), rel=1e-6)
    assert float(metrics["loss/cot"]) == pytest.approx(nll[MASK & (sources == 0)].mean(), rel=1e-6)
    assert float(metrics["loss/plain"]) == pytest.approx(nll[MASK & (sources == 1)].mean(), rel=1e-6)
    assert np.isnan(metrics["loss/absent"])
    assert float(loss / count) == pytest.approx((nll + 0.1 * squares)[MASK].mean(), rel=1e-6)


def test_log_z_is_the_log_sum_exp_of_all_logits():
    hidden = jnp.asarray(rng.normal(size=(2, 5, 32)).astype(np.float32))
    model = small.model()
    targets = rng.integers(0, 520, (2, 5))
    logits = hidden @ model.decoder.head[...].T
    for chunks in (1, 8):
        found = training.token_scores(hidden, model.decoder.head, targets, chunks=chunks)
        np.testing.assert_allclose(found.log_z, jax.nn.logsumexp(logits, -1), rtol=1e-5)
        expected = -optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(targets))
        np.testing.assert_allclose(found.log_probs, expected, rtol=1e-5, atol=1e-5)
