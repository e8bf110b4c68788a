"""What the cross-entropy of a row holds at its peak, forward and backward: all logits at once, and the vocabulary in
chunks (training/losses.py). By XLA's own account of the compiled program on this CPU; nothing of it is run.

    .venv/bin/python -m benchmarks.loss_memory
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.parallel.chips import GIB
from stepaudio_jax.training import token_scores

TOKENS = 10_240


def main():
    text = StepAudioConfig.preset("33b").decoder
    shape = text.vocab_size, text.hidden_size
    hidden = jax.ShapeDtypeStruct((1, TOKENS, text.hidden_size), jnp.bfloat16)
    head = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)

    def plain(hidden, head, targets):
        logits = jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def in_chunks(chunks):
        def loss(hidden, head, targets):
            parameter = nnx.Param(head, logical_axes=("vocab", "embed"))
            return -token_scores(hidden, parameter, targets, chunks=chunks).log_probs.mean()

        return loss

    title = f"one row of {TOKENS:,} tokens, vocabulary {text.vocab_size:,}, width {text.hidden_size:,}, bfloat16"
    table = Table(title=title)
    for column in ("", "temporaries", "all logits, float32", "compile"):
        table.add_column(column, justify="right" if column else "left")
    logits = 4 * TOKENS * text.vocab_size / GIB
    losses = {"optax, all logits": plain} | {f"{n} chunks": in_chunks(n) for n in (2, 4, 8, 16)}
    for name, loss in losses.items():
        begun = time.perf_counter()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, targets).compile()
        held = compiled.memory_analysis().temp_size_in_bytes / GIB
        table.add_row(name, f"{held:.2f} GiB", f"{logits:.2f} GiB", f"{time.perf_counter() - begun:.1f} s")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
