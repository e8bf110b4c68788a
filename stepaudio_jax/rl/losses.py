"""What a policy and a critic minimise, token by token: the clipped surrogate, value loss, KL estimators, weights.

Every function gives one number a token; `weights` says how much each counts, so that the whole batch adds up to the
mean wanted. A part of the batch is then a part of the sum: the loss does not depend on how the batch is cut into shards
and microbatches. All in float32; log-ratios are clamped to ±20 before exp (RECIPE §4).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.models.layers import AnyArray

KL = Literal["k1", "k2", "k3", "k3+"]
Aggregation = Literal["token", "sequence"]

MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """How far from 1 a ratio of probabilities counts.

    Attributes:
      low, high: the surrogate's ratio stays within 1 − low and 1 + high (arXiv:1707.06347, equation 7; unequal:
        arXiv:2503.14476, §3.1).
      dual: of a negative advantage at most so many times is counted (arXiv:1912.09729, equation 5); None: no bound.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self):
        if not (0 <= self.low <= 1 and self.high >= 0):
            raise ValueError(f"clip: expected 0 to 1 below and 0 or more above, found {self.low} and {self.high}")
        if self.dual is not None and self.dual <= 1 + self.high:
            raise ValueError(f"clip.dual: expected more than {1 + self.high}, found {self.dual}")


def log_ratio(log_probs: Float[AnyArray, ...], other: Float[AnyArray, ...]) -> Float[Array, ...]:
    return jnp.clip(log_probs.astype(jnp.float32) - other.astype(jnp.float32), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def surrogate(
    log_probs: Float[AnyArray, "B T"],
    old_log_probs: Float[AnyArray, "B T"],
    advantages: Float[AnyArray, "B T"],
    clip: Clip = Clip(),
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """−min(ρ A, clip(ρ) A) of each token, ρ = π / π_old, and where the clip held it (arXiv:1707.06347, equation 7)."""
    ratio = jnp.exp(log_ratio(log_probs, old_log_probs))
    free, held = -ratio * advantages, -jnp.clip(ratio, 1 - clip.low, 1 + clip.high) * advantages
    loss = jnp.maximum(free, held)
    clipped = held > free
    if clip.dual is not None:
        bound = -clip.dual * advantages
        beyond = (advantages < 0) & (loss > bound)
        loss, clipped = jnp.where(beyond, bound, loss), clipped | beyond
    return loss, clipped


def value_loss(
    values: Float[AnyArray, "B T"],
    old_values: Float[AnyArray, "B T"],
    returns: Float[AnyArray, "B T"],
    clip: float | None = 0.2,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """½ (V − R)² of each token, and where the clip held it: the larger loss of V and of V kept within `clip` of what it
    was before the update (the code published with arXiv:1707.06347)."""
    values, old_values = values.astype(jnp.float32), old_values.astype(jnp.float32)
    free = jnp.square(values - returns)
    if clip is None:
        return 0.5 * free, jnp.zeros_like(free, bool)
    held = jnp.square(old_values + jnp.clip(values - old_values, -clip, clip) - returns)
    return 0.5 * jnp.maximum(free, held), held > free


def kl(log_probs: Float[AnyArray, "*N"], reference: Float[AnyArray, "*N"], estimator: KL = "k3+") -> Float[Array, "*N"]:
    """Of each token an estimate of KL(π ‖ π_ref), from a token that π chose, d = log π − log π_ref.

    k1 is d, k2 d² / 2, k3 e^−d − 1 + d (Schulman, "Approximating KL divergence", 2020). As a loss only k2 has the
    gradient of the KL, E[d ∇ log π]; k1's has mean 0, k3's is that of the KL the other way round. "k3+" has the value
    of k3 and the gradient of k2.
    """
    d = log_ratio(log_probs, reference)
    if estimator == "k1":
        return d
    k2, k3 = jnp.square(d) / 2, jnp.exp(-d) - 1 + d
    if estimator == "k2":
        return k2
    if estimator == "k3":
        return k3
    if estimator == "k3+":
        return k2 + jax.lax.stop_gradient(k3 - k2)
    raise ValueError(f'kl: expected one of "k1", "k2", "k3", "k3+", found "{estimator}"')


def adapted(weight: float, found: float, target: float) -> float:
    """A KL's weight for the next update, after this one's KL was found: more where it is over the target, less where
    it is under, by at most 2 % (arXiv:1909.08593, section 2.2)."""
    error = min(max(found / target - 1, -0.2), 0.2)
    return weight * (1 + 0.1 * error)


def importance(
    log_probs: Float[AnyArray, "B T"], sampler: Float[AnyArray, "B T"], highest: float = 2.0
) -> Float[Array, "B T"]:
    """min(π_train / π_sampler, highest) of each token, for a sampler whose numbers differ from the trainer's (truncated
    importance sampling, Ionides 2008; fengyao.notion.site/off-policy-rl, 2025). No gradient flows through it."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio(log_probs, sampler)), highest))


def weights(
    mask: Bool[AnyArray, "B T"], segment_ids: Int[AnyArray, "B T"], aggregation: Aggregation = "token"
) -> Float[Array, "B T"]:
    """How much each token counts; 1 in all over the whole batch, 0 where the mask is not set.

    token     every token equally (arXiv:2503.14476, §3.3)
    sequence  every reply equally, and its tokens equally (arXiv:2402.03300)
    """
    if aggregation not in ("token", "sequence"):
        raise ValueError(f'aggregation: expected "token" or "sequence", found "{aggregation}"')
    marked = jnp.asarray(mask, jnp.float32)
    if aggregation == "token":
        return marked / jnp.maximum(marked.sum(), 1)
    rows = jnp.arange(len(mask))[:, None]
    tokens = jnp.zeros((len(mask), mask.shape[1] + 1)).at[rows, segment_ids].add(marked)
    own = marked / jnp.maximum(tokens[rows, segment_ids], 1)
    return own / jnp.maximum((tokens > 0).sum(), 1)
