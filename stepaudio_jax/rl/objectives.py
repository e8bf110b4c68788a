"""PPO's two objectives in the trainer's frame: the policy's (arXiv:1707.06347) and the critic's.

What they read of a rollout stands in `Batch.extra`, at the place before each token that the policy chose, where it is
predicted; 0 elsewhere:

  weights          how much the token counts, 1 in all over an optimizer step (losses.weights)
  old_log_probs    under the policy that wrote it, by the trainer's own forward pass (RECIPE §4)
  advantages
  importance       losses.importance, where asked for
  reference        log-probabilities of the reference policy, where a KL is part of the loss
  kl_weight        of that KL, the same everywhere: it may change from update to update (losses.adapted)
  old_values, returns    of the critic
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from stepaudio_jax.parallel.collectives import sum_over
from stepaudio_jax.rl.losses import KL, Clip, kl, log_ratio, surrogate, value_loss
from stepaudio_jax.training.losses import TokenScores, token_scores
from stepaudio_jax.training.objectives import Sums


def _total(each, weights) -> Sums:
    """Each over all tokens, the batch's rows and their parts on other shards among them."""
    sums = {name: (weights * value).sum() for name, value in each.items()}
    return sum_over(sum_over(sums, "length"), "batch")


class _Weighted:
    """An objective whose tokens bring their weights along, and so is a mean already."""

    def count(self, batch, mask):
        return jnp.ones((), jnp.float32)

    def metrics(self, sums, count):
        return dict(sums)


@dataclasses.dataclass(frozen=True)
class PolicyLoss(_Weighted):
    """The clipped surrogate, + kl_weight · KL(π ‖ π_ref) as a term of its own, − entropy_weight · H(π).

    Attributes:
      held: is there a KL?
      temperature: that replies were sampled at; the policy is the distribution at this temperature.
    """

    clip: Clip = dataclasses.field(default_factory=Clip)
    held: bool = False
    kl: KL = "k3+"
    entropy_weight: float = 0.0
    temperature: float = 1.0

    def scores(self, model, hidden, targets, chunks) -> TokenScores:
        wanted = self.entropy_weight != 0
        return token_scores(
            hidden, model.decoder.head, targets, chunks=chunks, temperature=self.temperature, entropy=wanted
        )

    def __call__(self, scores, batch, mask):
        given = batch.extra
        losses, clipped = surrogate(scores.log_probs, given["old_log_probs"], given["advantages"], self.clip)
        if "importance" in given:
            losses = given["importance"] * losses
        each = {
            "policy_loss": losses,
            "clip_fraction": clipped.astype(jnp.float32),
            "kl_to_old": kl(scores.log_probs, given["old_log_probs"], "k3"),
            "ratio": jnp.exp(log_ratio(scores.log_probs, given["old_log_probs"])),
        }
        if self.held:  # of the policy as it is, by tokens of the one that it was
            ratio = jax.lax.stop_gradient(each["ratio"])
            each["kl_to_reference"] = ratio * kl(scores.log_probs, given["reference"], self.kl)
            each["kl_loss"] = given["kl_weight"] * each["kl_to_reference"]
        if self.entropy_weight:
            each["entropy"] = scores.entropy
        sums = _total(each, given["weights"])
        loss = sums["policy_loss"] + sums.get("kl_loss", 0.0)
        sums["loss"] = loss - self.entropy_weight * sums.get("entropy", 0.0)
        return sums["loss"], sums


@dataclasses.dataclass(frozen=True)
class CriticLoss(_Weighted):
    """½ (V − R)², clipped around the values from before the update."""

    clip: float | None = 0.2

    def scores(self, model, hidden, targets, chunks):
        return model.values(hidden)

    def __call__(self, values, batch, mask):
        given = batch.extra
        losses, clipped = value_loss(values, given["old_values"], given["returns"], self.clip)
        sums = _total({"loss": losses, "clip_fraction": clipped.astype(jnp.float32)}, given["weights"])
        return sums["loss"], sums
