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


def sample(
    logits: Float[Array, "B V"],
    params: SamplingArrays,
    seen: Callable[[], Bool[Array, "B V"]],
    position: Int[Array, " B"],
    vocab_size: int,
) -> tuple[Int[Array, " B"], Float[Array, "B V"]]:
    """Chooses one token per row.

    The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. The noise depends on a row's
    seed and position only, so neighbours in the batch and the size of the bucket change nothing.

    Args:
      seen: gives the tokens already in each row's prompt or reply; called where a row has a repetition penalty.
      position: of the token that is chosen.
      vocab_size: entries of the tokenizer; what lies above is padding and never chosen.

    Returns:
      The tokens, and log-probabilities of the model's distribution at the sampling temperature (at 1 when greedy)
      before penalty and filters.
    """
    logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits.astype(jnp.float32), REMOVED)
    greedy = params.temperature == 0
    divide = jnp.where(greedy, 1.0, params.temperature)[:, None]
    log_probs = jax.nn.log_softmax(logits / divide)

    def penalise(logits):
        penalty = params.repetition_penalty[:, None]
        return jnp.where(seen(), jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    scores = jax.lax.cond(jnp.any(params.repetition_penalty != 1), penalise, lambda x: x, logits) / divide
    filtering = jnp.any((params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0))
    scores = jax.lax.cond(filtering, lambda s: filter_scores(s, params), lambda s: s, scores)

    def noise(seed, at):
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), at), scores.shape[-1:])

    noisy = jax.lax.cond(jnp.all(greedy), lambda: scores, lambda: scores + jax.vmap(noise)(params.seed, position))
    return jnp.where(greedy[:, None], scores, noisy).argmax(-1).astype(jnp.int32), log_probs


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
