"""Train state and the supervised step: a pure function of (state, batch) that the loop jits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from stepaudio_jax.data import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import unstack
from stepaudio_jax.training.losses import next_token_cross_entropy

Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """What a step changes: parameters (float32, a plain tree by module path), optimizer state, steps taken."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]


def init_state(model: StepAudio, optimizer: optax.GradientTransformation) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a model into its static graph and a fresh train state.

    Raises:
      ValueError: parameters that are not float32: a step of 1e-6 vanishes in bfloat16.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    if wrong := sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params) if leaf.dtype != jnp.float32}):
        raise ValueError(
            f"params: training needs float32 parameters, found {', '.join(wrong)}; load with dtype float32"
        )
    return graphdef, TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def merge(graphdef: nnx.GraphDef, params: Any, *, dtype: Any = None) -> StepAudio:
    """The model of a train state, its parameters cast to `dtype` for compute if given."""
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return nnx.merge(graphdef, params)


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    remat: str = "none",
    scan_layers: bool = True,
    compute_dtype: Any = jnp.float32,
    length_rule: str = "hf",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The supervised step. Metrics: loss (nats per token), accuracy, tokens, grad_norm.

    Args:
      remat: what the backward pass recomputes, a name in models.layers.REMAT_POLICIES.
      scan_layers: False writes the layers out one after another: a CPU then takes a sixth less time for a small
        model (benchmarks/README.md), for a longer compilation, and without `remat`.

    Raises:
      ValueError: remat without scanned layers.
    """
    if not scan_layers and remat != "none":
        raise ValueError(f'remat: "{remat}" recomputes scanned layers; set scan_layers or remat = "none"')

    def loss_fn(params, batch: Batch):
        model = merge(graphdef, params, dtype=compute_dtype)
        if not scan_layers:
            model.decoder.layers = unstack(model.decoder.layers)
            model.encoder.layers = unstack(model.encoder.layers)
        logits = model(
            batch.tokens, batch.positions, batch.segment_ids, batch.audio, remat=remat, length_rule=length_rule
        )
        return next_token_cross_entropy(logits, batch.tokens, batch.loss_mask)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return TrainState(params, opt_state, state.step + 1), metrics

    return step
