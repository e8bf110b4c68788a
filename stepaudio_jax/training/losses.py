"""The supervised objective: next-token cross-entropy on the assistant's tokens (R1.5 §3.1, §3.2).

Shapes: B batch, T tokens, E hidden_size, V vocab_size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.models.layers import AnyArray
from stepaudio_jax.parallel.collectives import gather_param, max_over, shard_of, sum_over, varying


class TokenScores(NamedTuple):
    """Of each token: its log-probability (nats), the logarithm of the softmax's denominator there, whether none is
    likelier, and where asked for the distribution's entropy (nats)."""

    log_probs: Float[Array, "B T"]
    log_z: Float[Array, "B T"]
    top: Bool[Array, "B T"]
    entropy: Float[Array, "B T"] | None = None


def token_scores(
    hidden: Float[Array, "B T E"],
    head: nnx.Param,
    targets: Int[AnyArray, "B T"],
    *,
    chunks: int = 1,
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenScores:
    """What the logits hidden · headᵀ say of given tokens, without ever holding all [B, T, V] of them.

    The vocabulary is taken in chunks, with a running maximum and sum (as in arXiv:1805.02867). Only one chunk of the
    head is put together from its parts at a time, and only one chunk's logits exist; the backward pass computes them
    again. Logits, sums and gradients of the hidden states are float32.

    Args:
      head: [V, E].
      chunks: how many.
      temperature: divides the logits.
      entropy: compute it too.

    Raises:
      ValueError: chunks that do not divide this shard's part of the vocabulary.
    """
    table, axes = head[...], head.get_metadata("logical_axes")
    if len(table) % chunks:
        raise ValueError(f"vocab_chunks: {chunks} does not divide the {len(table)} entries of a shard's vocabulary")
    size = len(table) // chunks
    first = shard_of("vocab")[0] * len(table)
    flat = hidden.reshape(-1, hidden.shape[-1])
    wide, wanted = varying((flat.astype(jnp.float32), jnp.asarray(targets).reshape(-1)))

    def add(carry, chunk):
        highest, total, target, weighted = carry
        part, start = chunk
        logits = jnp.matmul(wide.astype(hidden.dtype), gather_param(part, axes).T, preferred_element_type=jnp.float32)
        if temperature != 1:
            logits = logits / temperature
        new = jnp.maximum(highest, jax.lax.stop_gradient(logits).max(-1))
        shrink, powers = jnp.exp(highest - new), jnp.exp(logits - new[:, None])
        total = total * shrink + powers.sum(-1)
        here = wanted[:, None] - start == jnp.arange(size)
        target = target + jnp.where(here, logits, 0).sum(-1)
        if entropy:
            weighted = weighted * shrink + (powers * logits).sum(-1)
        return (new, total, target, weighted), None

    zeros = jnp.zeros_like(wide[:, 0])
    carry = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    if chunks == 1:
        carry, _ = add(carry, (table, first))
    else:
        parts = (table.reshape(chunks, size, -1), varying(first + size * jnp.arange(chunks)))
        carry, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), carry, parts)
    highest, total, target, weighted = carry
    best = max_over(highest, "vocab")
    shrink = jnp.exp(highest - best)
    total, target = sum_over((total * shrink, target), "vocab")
    log_z = best + jnp.log(total)
    scores = [target - log_z, log_z, target >= best]
    if entropy:
        scores.append(log_z - sum_over(weighted * shrink, "vocab") / total)
    return TokenScores(*(x.reshape(targets.shape) for x in scores))


def next_tokens(
    tokens: Int[AnyArray, "*B T"], loss_mask: Bool[AnyArray, "*B T"]
) -> tuple[Int[Array, "*B T"], Bool[Array, "*B T"]]:
    """What each place is to predict, and whether it counts: its successor, nothing at the end of a row."""

    def shifted(x):
        return jnp.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)])

    return shifted(jnp.asarray(tokens)), shifted(jnp.asarray(loss_mask))
