"""The supervised objective: next-token cross-entropy on the assistant's tokens (R1.5 §3.1, §3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.models.layers import AnyArray


def next_token_cross_entropy(
    logits: Float[Array, "B T V"], tokens: Int[AnyArray, "B T"], loss_mask: Bool[AnyArray, "B T"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean negative log-likelihood (nats) of the masked tokens, each predicted from those before it.

    The mean is over all masked tokens of the batch, so that it does not depend on how a batch is split in rows.

    Returns:
      The loss, and `tokens`, how many it averages over, and `accuracy`, the share that greedy decoding would hit.
    """
    logits, targets, mask = logits[:, :-1].astype(jnp.float32), tokens[:, 1:], loss_mask[:, 1:]
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    count = jnp.maximum(mask.sum(), 1)
    hits = (logits.argmax(-1) == targets) & mask
    return -jnp.where(mask, log_likelihood, 0).sum() / count, {"tokens": mask.sum(), "accuracy": hits.sum() / count}
