"""A policy's and a critic's step against arithmetic in numpy: temperature, clip, entropy, KL, and which way it goes.

The logits are the model's own forward pass; all that comes after them is computed here in float64, from numbers that
are given: what the tokens' log-probabilities were, and what their advantages are.
"""

import numpy as np
import optax
import pytest

from stepaudio_jax.data.examples import Batch
from stepaudio_jax.rl.learner import Learner, PolicyReader, read_critic
from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import CriticLoss, PolicyLoss
from stepaudio_jax.training.step import StepOptions
from tests import small
from tests.rl import runs

TOKENS = [7, 8, 20, 21, 22]
PLACES, TARGETS = [1, 2, 3], [20, 21, 22]
WEIGHTS = np.array([0.5, 0.25, 0.25])
ADVANTAGES = np.array([1.0, -2.0, 0.5])
RATIOS = np.array([1.5, 0.5, 1.05])
"""π / π_old of the three tokens: over the clip, under it, within it."""
DRIFT = np.array([0.3, -0.2, 0.1])
"""log π − log π_ref."""
TEMPERATURE, BETA, BONUS, CLIP = 0.7, 0.4, 0.5, Clip(0.1, 0.3)
RATE = 1e-3


def log_softmax(model, temperature):
    """log π of the whole vocabulary in the three places, [3, V], float64."""
    given = batch_of()
    logits = np.asarray(model(given.tokens, positions=given.positions, segment_ids=given.segment_ids), np.float64)
    scaled = logits[0, PLACES] / temperature
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def spread(values):
    placed = np.zeros((1, len(TOKENS)), np.float32)
    placed[0, PLACES] = values
    return placed


def batch_of(**extra):
    ids = np.ones((1, len(TOKENS)), np.int32)
    mask = np.array([[False, False, True, True, True]])
    arrays = {name: spread(values) for name, values in ({"weights": WEIGHTS} | extra).items()}
    positions = np.arange(len(TOKENS), dtype=np.int32)[None]
    return Batch(np.array([TOKENS], np.int32), positions, ids, mask, 0 * ids, None, extra=arrays)


def by_hand(log_p, old, reference=None, *, beta=0.0, importance=1.0):
    """The objective's terms."""
    own = log_p[range(3), TARGETS]
    ratio = np.exp(own - old)
    kept = np.clip(ratio, 1 - CLIP.low, 1 + CLIP.high)
    drift = own - (own if reference is None else reference)
    terms = {
        "policy_loss": -(WEIGHTS * importance * np.minimum(ratio * ADVANTAGES, kept * ADVANTAGES)).sum(),
        "ratio": (WEIGHTS * ratio).sum(),
        "clip_fraction": (WEIGHTS * (ratio * ADVANTAGES > kept * ADVANTAGES)).sum(),
        "kl_to_reference": (WEIGHTS * ratio * (np.exp(-drift) - 1 + drift)).sum(),
        "entropy": (WEIGHTS * -(np.exp(log_p) * log_p).sum(-1)).sum(),
    }
    terms["kl_loss"] = beta * terms["kl_to_reference"]
    terms["loss"] = terms["policy_loss"] + terms["kl_loss"] - BONUS * terms["entropy"]
    return terms


@pytest.fixture(scope="module")
def model():
    return small.model(scale=1.0)


@pytest.fixture(scope="module")
def compiled(model):
    objective = PolicyLoss(CLIP, held=True, entropy_weight=BONUS, temperature=TEMPERATURE)
    return Learner(
        model,
        optax.sgd(RATE),
        StepOptions(objective=objective),
        PolicyReader(TEMPERATURE, 1),
        trainable=("decoder",),
        rules=runs.one_device(),
    )


@pytest.fixture
def learner(compiled, model):
    return compiled.begin(model)


@pytest.fixture(scope="module")
def log_p(model):
    """log π of the whole vocabulary in the three places, [3, V]."""
    return log_softmax(model, TEMPERATURE)


@pytest.fixture(scope="module")
def own(log_p):
    """log π of the three tokens."""
    return log_p[range(3), TARGETS]


PLAIN = {"importance": np.ones(3)}
NO_KL = PLAIN | {"reference": np.zeros(3), "kl_weight": np.zeros(3)}


def test_the_policy_is_the_distribution_at_the_temperature_of_its_rollouts(learner, log_p, own):
    (found,) = learner.read([batch_of()])
    np.testing.assert_allclose(found["log_probs"][0, PLACES], own, atol=1e-5)
    np.testing.assert_allclose(found["entropy"][0, PLACES], -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5)


def test_a_step_minimises_what_the_paper_says(learner, log_p, own):
    """Every term, from ratios 1.5, 0.5 and 1.05."""
    old, reference, importance = own - np.log(RATIOS), own - DRIFT, np.array([1.0, 2.0, 0.5])
    given = {"old_log_probs": old, "advantages": ADVANTAGES, "reference": reference, "importance": importance}
    found = learner.step([batch_of(**given, kl_weight=[BETA] * 3)])
    expected = by_hand(log_p, old, reference, beta=BETA, importance=importance)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert expected["clip_fraction"] == pytest.approx(0.75)


def test_a_step_goes_down_the_gradient_of_the_loss(learner, log_p, own):
    """A small step of plain descent lowers what it descends by rate · |gradient|²."""
    old = own - np.log(RATIOS)
    found = learner.step([batch_of(old_log_probs=old, advantages=ADVANTAGES, **NO_KL)])
    after = by_hand(log_softmax(learner.model(np.float32), TEMPERATURE), old)
    before = by_hand(log_p, old)
    assert before["loss"] - after["loss"] == pytest.approx(RATE * found["grad_norm"] ** 2, rel=0.1)


def test_a_step_is_the_sum_over_its_batches(learner, compiled, model, own):
    """The same batch twice, as two batches of a rollout are: twice the gradient, twice the loss."""
    given = batch_of(old_log_probs=own, advantages=ADVANTAGES, **NO_KL)
    once = learner.step([given])
    twice = compiled.begin(model).step([given, given])
    for name in ("grad_norm", "loss", "entropy"):
        assert twice[name] == pytest.approx(2 * once[name], rel=1e-4), name


def test_without_advantages_the_entropy_grows(learner, log_p, own):
    learner.step([batch_of(old_log_probs=own, advantages=[0.0] * 3, **NO_KL)])
    after = by_hand(log_softmax(learner.model(np.float32), TEMPERATURE), own)
    assert after["entropy"] > by_hand(log_p, own)["entropy"]


def test_a_kl_draws_the_policy_to_the_reference(learner, log_p, own):
    """Its gradient is that of β d² / 2 on the policy's own tokens."""
    reference = own - DRIFT
    given = {"old_log_probs": own, "advantages": [0.0] * 3, "reference": reference, "kl_weight": [5 * BETA] * 3}
    found = learner.step([batch_of(**given, **PLAIN)])
    after = log_softmax(learner.model(np.float32), TEMPERATURE)

    def descended(log_p):
        k2 = (WEIGHTS * (log_p[range(3), TARGETS] - reference) ** 2 / 2).sum()
        return 5 * BETA * k2 - BONUS * by_hand(log_p, own)["entropy"]

    assert descended(log_p) - descended(after) == pytest.approx(RATE * found["grad_norm"] ** 2, rel=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_was_good_becomes_likelier(learner, own, sign):
    learner.step([batch_of(old_log_probs=own, advantages=[100.0 * sign] * 3, **NO_KL)])
    (found,) = learner.read([batch_of()])
    assert sign * (WEIGHTS * (found["log_probs"][0, PLACES] - own)).sum() > 0


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_critics_step(model, clip):
    """½ max((V − R)², (V_old ± 0.2 − R)²), from values that have moved by 0.5, −0.1 and −0.5."""
    _, critic = runs.learners(critic=True)
    made = Learner(
        critic.model(np.float32),
        optax.sgd(RATE),
        StepOptions(objective=CriticLoss(clip)),
        read_critic,
        trainable=("decoder", "value_head"),
        rules=runs.one_device(),
    ).begin(critic.model(np.float32))
    values = made.read([batch_of()])[0]["values"][0, PLACES].astype(np.float64)
    old, returns = values - np.array([0.5, -0.1, -0.5]), values + np.array([-0.1, 0.4, -1.0])
    found = made.step([batch_of(old_values=old, returns=returns)])
    free = (values - returns) ** 2
    held = (old + np.clip(values - old, -0.2, 0.2) - returns) ** 2
    expected = 0.5 * (WEIGHTS * (np.maximum(free, held) if clip else free)).sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["clip_fraction"] == pytest.approx((WEIGHTS * (held > free)).sum() if clip else 0)
    assert np.abs(made.read([batch_of()])[0]["values"][0, PLACES] - values).max() > 0
