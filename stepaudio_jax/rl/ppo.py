"""One update of the policy from one rollout: what was written is scored anew, turned into advantages, and learnt from.

    rollout ─ rows ─ old log-probabilities, values, reference ─ advantages ─ critic steps ─ policy step(s)

With a critic this is PPO (arXiv:1707.06347) as R1 §4.1 uses it; without one, the baseline of a group takes its place
(advantages.of_groups), and all else is the same.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from stepaudio_jax.data import Example
from stepaudio_jax.data.examples import Batch
from stepaudio_jax.rl import advantages as estimate
from stepaudio_jax.rl import losses
from stepaudio_jax.rl.learner import Learner
from stepaudio_jax.rl.rollout import Layout, Packed, Sampled, pack_rows

_gae = jax.jit(estimate.gae, static_argnames=("gamma", "lam"))
_at_last = jax.jit(estimate.at_last)


@dataclasses.dataclass(frozen=True)
class PPO:
    """How an update is computed.

    Attributes:
      samples: replies to each prompt, next to each other in the rollout.
      baseline: "critic", or one of a group (advantages.Baseline).
      scale: with "grpo", divide by the group's standard deviation.
      gamma, lam: of the estimator, with a critic.
      whiten: the critic's advantages over the batch.
      aggregation: see losses.weights.
      epochs, minibatches: policy steps are epochs times minibatches; in the default recipe one on the whole rollout.
      critic_minibatches: critic steps, on a part of the rollout each, one pass over it (RECIPE §3: 12).
      importance: highest weight against the mismatch of sampler and trainer; None: no weights.
      kl_loss: β of the KL in the loss (objectives.PolicyLoss). kl_reward: β of a penalty β (log π − log π_ref) on every
        token's reward, besides.
    """

    samples: int
    baseline: str = "critic"
    scale: bool = True
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True
    aggregation: losses.Aggregation = "token"
    epochs: int = 1
    minibatches: int = 1
    critic_minibatches: int = 12
    importance: float | None = None
    kl_loss: float = 0.0
    kl_reward: float = 0.0

    def __post_init__(self):
        known = ("critic", "grpo", "rloo", "reinforce++")
        if self.baseline not in known:
            raise ValueError(f'rl.baseline: expected one of {", ".join(known)}, found "{self.baseline}"')
        for name in ("samples", "epochs", "minibatches", "critic_minibatches"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"rl.{name}: expected at least 1, found {value}")
        if self.baseline != "critic" and self.samples < 2:
            raise ValueError(f'rl.samples: expected 2 or more, for "{self.baseline}" compares, found {self.samples}')


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Attributes:
    samples: replies, those to one prompt together. examples: the same with their prompts, as rows take them.
    scores: float32 [N], the reward of each. valid: which of them have one (an unreadable verdict is no 0).
    """

    samples: Sequence[Sampled]
    examples: Sequence[Example]
    scores: Float[np.ndarray, " N"]
    valid: Bool[np.ndarray, " N"]


def update(
    rollout: Rollout,
    ppo: PPO,
    layout: Layout,
    policy: Learner,
    critic: Learner | None,
    reference: Callable[[list[Batch]], list[dict[str, np.ndarray]]] | None = None,
) -> dict[str, float]:
    """Learns from a rollout; what there is to say about it.

    Args:
      critic: with baseline "critic".
      reference: reads batches as the policy that this one is held to, where a KL is asked for.
    """
    pairs = zip(rollout.samples, rollout.examples, strict=True)
    prompts = [(sample.prompt, example.num_tokens - len(sample.token_ids)) for sample, example in pairs]
    packed = pack_rows(rollout.examples, layout, prompts)
    masks = [_chosen(each, rollout.valid) for each in packed]
    old = policy.read([each.batch for each in packed])
    extras: list[dict[str, np.ndarray]] = [{"old_log_probs": found["log_probs"]} for found in old]
    sampler = [each.spread([[p or 0.0 for p in sample.log_probs] for sample in rollout.samples]) for each in packed]
    if ppo.importance is not None:
        for extra, own in zip(extras, sampler, strict=True):
            extra["importance"] = np.asarray(losses.importance(extra["old_log_probs"], own, ppo.importance))
    if reference is not None:
        for extra, found in zip(extras, reference([each.batch for each in packed]), strict=True):
            extra["reference"] = found["log_probs"]
            extra["kl_weight"] = np.full_like(found["log_probs"], ppo.kl_loss)
    metrics = _about_policy(old, masks, sampler, extras)
    if ppo.baseline == "critic":
        assert critic is not None
        metrics |= _with_critic(rollout, ppo, packed, masks, extras, critic)
    else:
        _with_groups(rollout, ppo, packed, masks, extras)
    for _ in range(ppo.epochs):
        for part in _parts(len(packed), ppo.minibatches):
            metrics |= policy.step(_weighted(part, packed, masks, extras, ppo.aggregation))
    return metrics


def _chosen(packed: Packed, valid: Bool[np.ndarray, " N"]) -> Bool[np.ndarray, "B T"]:
    """The places before tokens that the policy chose, of samples that have a reward."""
    batch = packed.batch
    mask = np.zeros_like(batch.loss_mask)
    mask[:, :-1] = batch.loss_mask[:, 1:]
    known = np.pad(packed.segments(valid.astype(np.float32)) > 0, ((0, 0), (1, 0)))  # segment 0 is padding
    return mask & known[np.arange(len(mask))[:, None], batch.segment_ids]


def _with_critic(
    rollout: Rollout, ppo: PPO, packed: list[Packed], masks: list, extras: list[dict], critic: Learner
) -> dict[str, float]:
    """Advantages by the critic's values; then the critic learns from the returns."""
    values = [found["values"] for found in critic.read([each.batch for each in packed])]
    for each, mask, value, extra in zip(packed, masks, values, extras, strict=True):
        segment_ids = each.batch.segment_ids
        rewards = np.asarray(_at_last(each.segments(rollout.scores), mask, segment_ids))
        if ppo.kl_reward:
            rewards = rewards - np.where(mask, ppo.kl_reward * (extra["old_log_probs"] - extra["reference"]), 0)
        found = _gae(rewards, value, mask, segment_ids, gamma=ppo.gamma, lam=ppo.lam)
        extra["advantages"], extra["returns"] = map(np.asarray, found)
        extra["old_values"] = value
    mask, returns, value = (np.concatenate(x) for x in (masks, [extra["returns"] for extra in extras], values))
    spread = float(np.var(returns[mask])) if mask.any() else 0.0
    explained = 1 - float(np.var(returns[mask] - value[mask])) / spread if spread > 0 else float("nan")
    steps = [
        critic.step(_weighted(part, packed, masks, extras, "token", of_critic=True))
        for part in _parts(len(packed), ppo.critic_minibatches)
    ]
    if ppo.whiten:
        white = np.asarray(estimate.whiten(np.concatenate([extra["advantages"] for extra in extras]), mask))
        for extra, own in zip(extras, np.split(white, len(extras)), strict=True):
            extra["advantages"] = own
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return {"explained_variance": explained} | {f"critic/{name}": value for name, value in means.items()}


def _with_groups(rollout: Rollout, ppo: PPO, packed: list[Packed], masks: list, extras: list[dict]):
    """One advantage for all tokens of a sample, against the others of its prompt."""
    scores = rollout.scores.astype(np.float32)
    if ppo.kl_reward:
        scores = scores - _of_samples(packed, masks, extras, ppo.kl_reward, len(scores))
    groups = scores.reshape(-1, ppo.samples), rollout.valid.reshape(-1, ppo.samples)
    baseline: Any = ppo.baseline
    found = np.asarray(estimate.of_groups(jnp.asarray(groups[0]), jnp.asarray(groups[1]), baseline, scale=ppo.scale))
    for each, mask, extra in zip(packed, masks, extras, strict=True):
        own = np.pad(each.segments(found.reshape(-1)), ((0, 0), (1, 0)))
        extra["advantages"] = np.where(mask, own[np.arange(len(mask))[:, None], each.batch.segment_ids], 0)


def _of_samples(packed: list[Packed], masks: list, extras: list[dict], beta: float, count: int) -> np.ndarray:
    """The penalty of each sample, added up over its tokens."""
    penalties = np.zeros(count, np.float32)
    for each, mask, extra in zip(packed, masks, extras, strict=True):
        tokens = np.where(mask, beta * (extra["old_log_probs"] - extra["reference"]), 0)
        for row, items in enumerate(each.items):
            for segment, item in enumerate(items, start=1):
                penalties[item] = tokens[row][each.batch.segment_ids[row] == segment].sum()
    return penalties


def _parts(count: int, parts: int) -> list[range]:
    """Numbers 0…count − 1 in so many parts, or as many as there are."""
    ends = np.linspace(0, count, min(parts, count) + 1).astype(int)
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def _weighted(
    part: range, packed: list[Packed], masks: list, extras: list[dict], aggregation: Any, *, of_critic: bool = False
) -> list:
    """Batches of one optimizer step, whose tokens' weights are 1 together."""
    mask = np.concatenate([masks[i] for i in part])
    segment_ids = np.concatenate([packed[i].batch.segment_ids for i in part])
    weights = np.split(np.asarray(losses.weights(mask, segment_ids, aggregation)), len(part))
    of_policy = ("old_log_probs", "advantages", "importance", "reference", "kl_weight")
    wanted = ("old_values", "returns") if of_critic else of_policy
    return [
        packed[i].batch._replace(
            extra={"weights": own} | {name: extras[i][name] for name in wanted if name in extras[i]}
        )
        for i, own in zip(part, weights, strict=True)
    ]


def _about_policy(old: list[dict], masks: list, sampler: list, extras: list[dict]) -> dict[str, float]:
    """Entropy, and how far the trainer's log-probabilities are from those of the sampler."""
    mask = np.concatenate(masks)
    if not mask.any():
        return {}
    entropy, ours = (np.concatenate([found[name] for found in old])[mask] for name in ("entropy", "log_probs"))
    theirs = np.concatenate(sampler)[mask]
    found = {
        "entropy": float(entropy.mean()),
        "sampler/mean_difference": float(np.abs(ours - theirs).mean()),
        "sampler/largest_difference": float(np.abs(ours - theirs).max()),
    }
    if "reference" in extras[0]:
        reference = np.concatenate([extra["reference"] for extra in extras])[mask]
        found["kl_to_reference"] = float(np.asarray(losses.kl(ours, reference, "k3")).mean())
    return found
