"""The maths of reinforcement learning against rlax and against TRL's own formulas."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity

jnp = pytest.importorskip("jax.numpy")
jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")

from stepaudio_jax.rl.advantages import gae, of_groups  # noqa: E402
from stepaudio_jax.rl.losses import Clip, kl, surrogate, value_loss  # noqa: E402

RNG = np.random.default_rng(0)


def close(ours, theirs, what: str):
    error = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    print(f"{what}: largest difference {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_gae_against_rlax(gamma, lam):
    rlax = pytest.importorskip("rlax")
    rewards, values = RNG.normal(size=(2, 5, 12)).astype(np.float32)
    ours, _ = gae(rewards, values, np.ones((5, 12), bool), np.ones((5, 12), int), gamma=gamma, lam=lam)
    discounts = np.full(12, gamma, np.float32)
    discounts[-1] = 0
    for row in range(5):
        theirs = rlax.truncated_generalized_advantage_estimation(
            jnp.asarray(rewards[row]), jnp.asarray(discounts), lam, jnp.append(values[row], 0.0)
        )
        close(ours[row], theirs, f"GAE, γ {gamma}, λ {lam}")


def test_the_surrogate_and_its_gradient_against_rlax():
    rlax = pytest.importorskip("rlax")
    new, old = (jnp.asarray(0.3 * RNG.normal(size=200), jnp.float32) for _ in range(2))
    advantages = jnp.asarray(RNG.normal(size=200), jnp.float32)

    def ours(x):
        return surrogate(x, old, advantages, Clip(0.2, 0.2))[0].mean()

    def theirs(x):
        return rlax.clipped_surrogate_pg_loss(jnp.exp(x - old), advantages, 0.2)

    close(ours(new), theirs(new), "clipped surrogate")
    close(jax.grad(ours)(new), jax.grad(theirs)(new), "its gradient")


def test_the_surrogate_against_trls_formula():
    """As TRL's PPO and GRPO trainers compute it, in torch, with gradients."""
    new, old, advantages = (torch.tensor(0.4 * RNG.normal(size=(4, 20)), dtype=torch.float32) for _ in range(3))
    new.requires_grad_()
    ratio = torch.exp(new - old)
    theirs = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - 0.2, 1 + 0.28)).mean()
    theirs.backward()
    args = (old.numpy(), advantages.numpy(), Clip(0.2, 0.28))
    value, slope = jax.value_and_grad(lambda x: surrogate(x, *args)[0].mean())(jnp.asarray(new.detach().numpy()))
    close(value, theirs.detach(), "surrogate, asymmetric")
    close(slope, new.grad, "its gradient")


def test_value_loss_against_trls_formula():
    values, old, returns = (torch.tensor(RNG.normal(size=(4, 20)), dtype=torch.float32) for _ in range(3))
    values.requires_grad_()
    clipped = torch.clamp(values, old - 0.2, old + 0.2)
    theirs = 0.5 * torch.max(torch.square(values - returns), torch.square(clipped - returns)).mean()
    theirs.backward()
    args = (jnp.asarray(old.numpy()), jnp.asarray(returns.numpy()), 0.2)
    value, slope = jax.value_and_grad(lambda x: value_loss(x, *args)[0].mean())(jnp.asarray(values.detach().numpy()))
    close(value, theirs.detach(), "value loss")
    close(slope, values.grad, "its gradient")


def test_kl_against_trls_formula():
    """k3 as TRL's GRPO trainer has it."""
    new, ref = (torch.tensor(0.3 * RNG.normal(size=(4, 20)), dtype=torch.float32) for _ in range(2))
    theirs = torch.exp(ref - new) - (ref - new) - 1
    close(kl(jnp.asarray(new.numpy()), jnp.asarray(ref.numpy()), "k3"), theirs, "k3")


@pytest.mark.parametrize("baseline", ["grpo", "rloo"])
def test_groups_against_trls_formulas(baseline):
    rewards = torch.tensor(RNG.choice([0.0, 0.2, 0.8, 1.0], size=(6, 8)), dtype=torch.float32)
    if baseline == "grpo":
        theirs = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    else:
        theirs = rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    ours = of_groups(jnp.asarray(rewards.numpy()), jnp.ones((6, 8), bool), baseline)
    close(ours, theirs, baseline)
