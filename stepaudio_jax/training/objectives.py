"""What a step minimises, from the log-probabilities of a batch's tokens.

An objective turns this shard's part of a batch into sums over the whole of it: what is to be minimised, and what is
reported. Both are divided by `count`, so that a mean is over all tokens or pairs of an optimizer step however they are
cut into shards and microbatches.

Shapes: B rows, T tokens, S segments a row has room for.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.data import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.parallel.collectives import shard_of, sum_over
from stepaudio_jax.training.losses import TokenScores, token_scores

Sums = dict[str, Array]


class Objective(Protocol):
    def scores(
        self, model: StepAudio, hidden: Float[Array, "B T E"], targets: Int[Array, "B T"], chunks: int
    ) -> Any:
        """What is known of each token from the decoder's hidden states; `chunks`: see `token_scores`."""
        ...

    def count(self, batch: Batch, mask: Bool[Array, "*B T"]) -> Float[Array, ""]:
        """Tokens or pairs of an optimizer step, of which the mean is taken; never 0."""
        ...

    def __call__(self, scores: Any, batch: Batch, mask: Bool[Array, "B T"]) -> tuple[Float[Array, ""], Sums]:
        """What is minimised, and what is reported, each summed over all shards."""
        ...

    def metrics(self, sums: Sums, count: Float[Array, ""]) -> Sums:
        """What is reported, as means, with "loss" and "accuracy" among it."""
        ...


class OfTokens:
    """An objective of the tokens' log-probabilities."""

    def scores(self, model, hidden, targets, chunks) -> TokenScores:
        return token_scores(hidden, model.decoder.head, targets, chunks=chunks)


@dataclasses.dataclass(frozen=True)
class NextToken(OfTokens):
    """Cross-entropy of the trained tokens (R1.5 §3.1, §3.2).

    Attributes:
      z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits from drifting (PaLM,
        arXiv:2204.02311, section 5: 1e-4).
      sources: names of the data sets, whose losses are reported apart.
    """

    z_loss: float = 0.0
    sources: tuple[str, ...] = ()

    def count(self, batch, mask):
        return jnp.maximum(mask.sum(), 1).astype(jnp.float32)

    def __call__(self, scores, batch, mask):
        losses = jnp.where(mask, -scores.log_probs, 0)
        squares = jnp.where(mask, jnp.square(scores.log_z), 0).sum()
        sums = {"loss": losses.sum(), "accuracy": (scores.top & mask).sum().astype(jnp.float32)}
        if self.z_loss:
            sums["z_loss"] = squares
        if len(self.sources) > 1:
            own = (batch.sources == jnp.arange(len(self.sources))[:, None, None]) & mask
            sums |= {"of_sources": jnp.where(own, losses, 0).sum((1, 2)), "tokens": own.sum((1, 2), dtype=jnp.float32)}
        sums = sum_over(sum_over(sums, "length"), "batch")
        return sums["loss"] + (self.z_loss * sums["z_loss"] if self.z_loss else 0.0), sums

    def metrics(self, sums, count):
        means = {name: sums[name] / count for name in ("loss", "accuracy", "z_loss") if name in sums}
        if "of_sources" in sums:
            losses = sums["of_sources"] / sums["tokens"]  # nan where a batch had none of a source
            means |= {f"loss/{name}": losses[i] for i, name in enumerate(self.sources)}
        return means


@dataclasses.dataclass(frozen=True)
class DPO(OfTokens):
    """Direct preference optimisation, −log σ(β · margin) (arXiv:2305.18290, equation 7).

    A pair is two segments next to each other, the better reply first: 1 and 2, 3 and 4, … The margin is how much more
    the better reply has gained over the reference than the worse one; what the reference thought of a segment stands in
    `Batch.reference`, computed once before training.

    Attributes:
      beta: how far the policy may go from its reference.
      label_smoothing: share of pairs believed to be labelled the wrong way round (cDPO, arXiv:2305.18290, appendix).
      sft_weight: weight of the better reply's own cross-entropy, per pair and token (arXiv:2404.19733, equation 1).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def count(self, batch, mask):
        last = batch.segment_ids.reshape(-1, batch.segment_ids.shape[-1]).max(-1)
        return jnp.maximum((last // 2).sum(), 1).astype(jnp.float32)

    def __call__(self, scores, batch, mask):
        trained = jnp.where(mask, scores.log_probs, 0)
        log_probs, reference, tokens = (
            sum_over(by_segment(x, batch.segment_ids), "length") for x in (trained, batch.reference, mask)
        )
        chosen, rejected = (self.beta * (log_probs - reference)[:, i::2] for i in (0, 1))
        pair = tokens[:, 1::2] > 0
        margin = chosen - rejected
        wrong = self.label_smoothing
        losses = -(1 - wrong) * jax.nn.log_sigmoid(margin) - wrong * jax.nn.log_sigmoid(-margin)
        sums = {
            "loss": losses,
            "accuracy": (margin > 0).astype(jnp.float32),
            "margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "loss_chosen": -log_probs[:, ::2] / jnp.maximum(tokens[:, ::2], 1),
        }
        sums = sum_over({name: jnp.where(pair, value, 0).sum() for name, value in sums.items()}, "batch")
        return sums["loss"] + self.sft_weight * sums["loss_chosen"], sums

    def metrics(self, sums, count):
        return {name: value / count for name, value in sums.items()}


def by_segment(x: Float[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B S"]:
    """The sum of the values that this shard has of each segment, segment 1 first. S is half of a whole row's tokens:
    a segment in which anything is trained has two."""
    segments = x.shape[1] * shard_of("length")[1] // 4 * 2
    rows = jnp.arange(len(x))[:, None]
    return jnp.zeros_like(x, jnp.float32, shape=(len(x), segments + 1)).at[rows, segment_ids].add(x)[:, 1:]
