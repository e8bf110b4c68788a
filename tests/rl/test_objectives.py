"""The policy's objective against closed forms: a few states and a tiny vocabulary, every token enumerated."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.rl.losses import Clip
from stepaudio_jax.rl.objectives import PolicyLoss

STATES, TOKENS = 3, 6
SEEN = np.array([0.5, 0.3, 0.2])
"""How often each state is visited; held fixed."""


def log_softmax(seed):
    return jax.nn.log_softmax(jnp.asarray(np.random.default_rng(seed).normal(size=(STATES, TOKENS)), jnp.float32))


def loss(logits, old, reference, advantages, beta, estimator="k3+"):
    """The objective's expectation over tokens that the old policy has drawn: each counts as often as it is drawn."""
    objective = PolicyLoss(Clip(), held=True, kl=estimator)
    weights = jnp.exp(old) * SEEN[:, None]
    extra = {"old_log_probs": old, "advantages": advantages, "reference": reference, "weights": weights}
    batch = SimpleNamespace(extra=extra | {"kl_weight": jnp.full_like(old, beta)})
    scores: object = SimpleNamespace(log_probs=jax.nn.log_softmax(logits))
    total, sums = PolicyLoss.__call__(objective, scores, batch, None)  # type: ignore[arg-type]
    return total, sums


def exact_kl(logits, reference):
    """Σ_s d(s) KL(π(·|s) ‖ π_ref(·|s)), in float32."""
    log_p = jax.nn.log_softmax(logits)
    return (SEEN[:, None] * jnp.exp(log_p) * (log_p - reference)).sum()


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("estimator", ["k2", "k3+"])
def test_the_kl_term_has_the_gradient_of_the_kl(same, estimator):
    """On-policy; and off-policy, where the tokens are those of an older policy and carry the ratio."""
    policy, reference = log_softmax(0), log_softmax(1)
    old = policy if same else jax.nn.log_softmax(policy + 0.7 * log_softmax(2))
    nothing = jnp.zeros_like(old)
    found = jax.grad(lambda x: loss(x, old, reference, nothing, 0.3, estimator)[0])(policy)
    true = jax.grad(lambda x: 0.3 * exact_kl(x, reference))(policy)
    np.testing.assert_allclose(found, true, atol=1e-6)
    if estimator == "k3+":  # whose value is that of the KL, too
        value = loss(policy, old, reference, nothing, 0.3)[1]["kl_to_reference"]
        assert float(value) == pytest.approx(float(exact_kl(policy, reference)), rel=1e-5)


def test_a_larger_weight_holds_the_policy_nearer():
    """Plain gradient steps of a size that goes with 1 / β, each from fresh on-policy advantages, to where they stop:
    there π ∝ π_ref exp(r / β), which is what the KL reached is compared with."""
    reference, rewards = log_softmax(1), jnp.asarray(np.random.default_rng(3).normal(size=(STATES, TOKENS)))

    def reached(beta):
        def step(logits, _):
            old = jax.nn.log_softmax(logits)
            p = jnp.exp(old)
            advantages = rewards - (p * rewards).sum(-1, keepdims=True)
            return logits - 0.5 / beta * jax.grad(lambda x: loss(x, old, reference, advantages, beta)[0])(logits), None

        return jax.lax.scan(step, reference, None, length=20_000)[0]

    found = []
    for beta in (0.25, 0.5, 1.0, 2.0, 4.0):
        logits = reached(beta)
        best = jax.nn.log_softmax(reference + rewards / beta)
        np.testing.assert_allclose(jax.nn.softmax(logits), jnp.exp(best), atol=2e-3)
        found.append(float(exact_kl(logits, reference)))
    assert all(more > 1.1 * less for more, less in itertools.pairwise(found)), found
