"""From rewards to advantages: generalised advantage estimation, baselines of a group, and whitening.

Shapes: B rows, T places of a row; P prompts, K samples of each. A row may hold several segments, numbered from 1; 0
is padding. `mask` marks the places whose token the policy chose: only there is a reward, a value, an advantage. What
stands between (observations, forced tokens) is carried through, as if it were not there.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.models.layers import AnyArray

Baseline = Literal["grpo", "rloo", "reinforce++"]

EPSILON = 1e-4
"""Added to the standard deviation of a group, as TRL does: equal scores have advantages of 0, not of noise."""


def at_last(
    scores: Float[AnyArray, "B S"], mask: Bool[AnyArray, "B T"], segment_ids: Int[AnyArray, "B T"]
) -> Float[Array, "B T"]:
    """Rewards that are given for a whole reply, at its last chosen token (R1 §4.1), float32.

    Args:
      scores: of each segment, segment 1 first.
    """
    places = jnp.arange(mask.shape[1])
    segments = jnp.arange(1, scores.shape[1] + 1)
    own = mask[:, None] & (segment_ids[:, None] == segments[:, None])
    last = jnp.where(own, places, -1).max(-1)  # [B, S]
    here = own & (places == last[..., None])
    return jnp.where(here, scores.astype(jnp.float32)[..., None], 0).sum(1)


def gae(
    rewards: Float[AnyArray, "B T"],
    values: Float[AnyArray, "B T"],
    mask: Bool[AnyArray, "B T"],
    segment_ids: Int[AnyArray, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages and returns, Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V_{t+1} − V_t (arXiv:1506.02438, equation 16).

    t + 1 is the next chosen token of the same segment; after the last one V is 0. With γ = λ = 1 and one reward R at
    the end, Â_t = R − V_t. Both are 0 where nothing was chosen.
    """
    rewards, values = rewards.astype(jnp.float32), values.astype(jnp.float32)

    def back(carry, place):
        later_advantage, later_value, later_segment = carry
        reward, value, chosen, segment = place
        same = segment == later_segment
        later_advantage, later_value = (jnp.where(same, x, 0) for x in (later_advantage, later_value))
        delta = reward + gamma * later_value - value
        advantage = delta + gamma * lam * later_advantage
        carry = jnp.where(chosen, advantage, later_advantage), jnp.where(chosen, value, later_value), segment
        return carry, jnp.where(chosen, advantage, 0)

    zeros = jnp.zeros_like(rewards[:, 0])
    start = zeros, zeros, jnp.zeros_like(segment_ids[:, 0])
    columns = jax.tree.map(jnp.transpose, (rewards, values, mask, segment_ids))
    _, advantages = jax.lax.scan(back, start, columns, reverse=True)
    advantages = advantages.T
    return advantages, jnp.where(mask, advantages + values, 0)


def whiten(x: Float[AnyArray, "*N"], mask: Bool[AnyArray, "*N"], *, shift_mean: bool = True) -> Float[Array, "*N"]:
    """x with mean 0 and variance 1 over the marked places of the whole batch, 0 elsewhere.

    Mean and variance are of the marked places alone (RECIPE §3: an unmasked mean depends on how much is padding).

    Args:
      shift_mean: False keeps the mean, and only scales.
    """
    x, count = x.astype(jnp.float32), jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, x, 0).sum() / count
    variance = jnp.where(mask, jnp.square(x - mean), 0).sum() / jnp.maximum(count - 1, 1)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(mask, white if shift_mean else white + mean, 0)


def of_groups(
    scores: Float[AnyArray, "P K"], valid: Bool[AnyArray, "P K"], baseline: Baseline, *, scale: bool = True
) -> Float[Array, "P K"]:
    """Advantages of samples against others, one for all tokens of a sample; those not valid have 0, and no say.

    grpo         (r − mean) / (std + ε) of the samples of one prompt (arXiv:2402.03300, §4.1.2); without `scale`
                 r − mean (arXiv:2503.20783, equation 3)
    rloo         r − mean of the prompt's other samples (arXiv:2402.14740, equation 8)
    reinforce++  r − mean of the prompt's samples, whitened over the batch (arXiv:2501.03262, with a baseline)

    A sample that is alone in its group has nothing to be compared with: 0.
    """
    scores = scores.astype(jnp.float32)
    count = valid.sum(-1, keepdims=True)
    mean = jnp.where(valid, scores, 0).sum(-1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(valid & (count > 1), scores - mean, 0)
    if baseline == "rloo":
        return centred * count / jnp.maximum(count - 1, 1)
    if baseline == "reinforce++":
        return whiten(centred, valid & (count > 1))
    if baseline != "grpo":
        raise ValueError(f'baseline: expected one of "grpo", "rloo", "reinforce++", found "{baseline}"')
    if not scale:
        return centred
    variance = jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
    return centred / (jnp.sqrt(variance) + EPSILON)
