"""The one sampler: per-row parameters in, tokens and log-probabilities out, all in static shapes.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from stepaudio_jax.inference.types import SamplingParams
from stepaudio_jax.models.layers import AnyArray

REMOVED = -jnp.inf
BLOCK = 128


class SamplingArrays(NamedTuple):
    """SamplingParams of a batch, one entry per row."""

    temperature: Float[AnyArray, " B"]
    top_k: Int[AnyArray, " B"]
    top_p: Float[AnyArray, " B"]
    min_p: Float[AnyArray, " B"]
    repetition_penalty: Float[AnyArray, " B"]
    seed: UInt[AnyArray, " B"]
    top_log_probs: Int[AnyArray, " B"]

    @classmethod
    def stack(cls, params: Sequence[SamplingParams]) -> SamplingArrays:
        kinds = {"top_k": np.int32, "seed": np.uint32, "top_log_probs": np.int32}
        return cls(*(np.array([getattr(p, name) for p in params], kinds.get(name, np.float32)) for name in cls._fields))


class Distribution(NamedTuple):
    """Of a batch's next tokens; the log-probability of token t is scores[t] − norm."""

    scores: Float[Array, "B V"]
    norm: Float[Array, " B"]

    def log_probs(self) -> Float[Array, "B V"]:
        return self.scores - self.norm[:, None]


def sample(
    logits: Float[Array, "B V"],
    params: SamplingArrays,
    seen: Callable[[], Bool[Array, "B V"]],
    position: Int[Array, " B"],
    vocab_size: int,
) -> tuple[Int[Array, " B"], Distribution]:
    """Chooses one token per row.

    The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. The random number depends on a
    row's seed and position only, so neighbours in the batch and the size of the bucket change nothing.

    Args:
      seen: gives the tokens already in each row's prompt or reply; called where a row has a repetition penalty.
      position: of the token that is chosen.
      vocab_size: entries of the tokenizer; what lies above is padding and never chosen.

    Returns:
      The tokens, and the model's distribution at the sampling temperature (at 1 when greedy) before penalty and
      filters.
    """
    greedy = params.temperature == 0
    divide = jnp.where(greedy, 1.0, params.temperature)[:, None]
    # The penalty's sign is that of the logit, which dividing does not change: one pass over the vocabulary for all.
    scores = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits.astype(jnp.float32) / divide, REMOVED)
    distribution = Distribution(scores, jax.nn.logsumexp(scores, axis=-1))

    def penalise(scores):
        penalty = params.repetition_penalty[:, None]
        return jnp.where(seen(), jnp.where(scores > 0, scores / penalty, scores * penalty), scores)

    scores = jax.lax.cond(jnp.any(params.repetition_penalty != 1), penalise, lambda s: s, scores)
    filtering = jnp.any((params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0))
    scores = jax.lax.cond(filtering, lambda s: filter_scores(s, params), lambda s: s, scores)

    def number(seed, at):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), at))

    drawn = jax.lax.cond(
        jnp.all(greedy),
        lambda: jnp.zeros(len(scores), jnp.int32),
        lambda: draw(scores, jax.vmap(number)(params.seed, position)),
    )
    return jnp.where(greedy, likeliest_token(scores), drawn), distribution


def in_blocks(scores: Float[Array, "B V"]) -> Float[Array, "B N 128"]:
    """Cut into blocks, so that one token is sought among blocks, then within one: a single search over a whole
    vocabulary is most of a small model's step on a CPU."""
    padded = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % BLOCK)), constant_values=REMOVED)
    return padded.reshape(len(scores), -1, BLOCK)


def likeliest_token(scores: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The first of the highest scores."""
    blocks = in_blocks(scores)
    block = blocks.max(-1).argmax(-1)
    within = blocks[jnp.arange(len(blocks)), block].argmax(-1)
    return (block * BLOCK + within).astype(jnp.int32)


def draw(scores: Float[Array, "B V"], numbers: Float[Array, " B"]) -> Int[Array, " B"]:
    """The tokens at these shares, in [0, 1), of the cumulative distribution; one of no probability never is."""
    blocks = in_blocks(scores)
    mass = jnp.exp(blocks - scores.max(-1)[:, None, None])
    block, rest = place(mass.sum(-1), numbers)
    within, _ = place(mass[jnp.arange(len(mass)), block], rest)
    return block * BLOCK + within


def place(weights: Float[Array, "B N"], numbers: Float[Array, " B"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Where a share of the sum falls, and which share of that weight lies before it, in [0, 1)."""
    ends = jnp.cumsum(weights, axis=-1)
    target = numbers[:, None] * ends[:, -1:]
    index = (ends <= target).sum(-1).astype(jnp.int32)
    here = jnp.arange(len(weights)), index
    before = jnp.where(index > 0, ends[here[0], jnp.maximum(index - 1, 0)], 0)
    rest = (target[:, 0] - before) / (ends[here] - before)
    return index, jnp.clip(rest, 0, 1 - 2.0**-23)


def filter_scores(scores: Float[Array, "B V"], params: SamplingArrays) -> Float[Array, "B V"]:
    """Removes (−inf) what top-k, then top-p (arXiv:1904.09751), then min-p (arXiv:2407.01082) leave out."""
    size = scores.shape[-1]
    ordered = -jnp.sort(-scores, axis=-1)
    k = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, size), size)
    kept = jnp.arange(size) < k[:, None]
    ordered = jnp.where(kept, ordered, REMOVED)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept &= (before < params.top_p[:, None]) & (ordered > REMOVED)
    # Each filter keeps the head of the order, so its last kept score is the bar; equal scores pass together.
    bar = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)
    scores = jnp.where(scores >= bar[:, None], scores, REMOVED)
    floor = jnp.log(jnp.maximum(params.min_p, 1e-38))[:, None] + scores.max(-1, keepdims=True)
    return jnp.where((params.min_p[:, None] > 0) & (scores < floor), REMOVED, scores)
