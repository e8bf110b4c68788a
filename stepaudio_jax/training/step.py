"""Train state and the train step: a pure function of (state, batch) that the loop jits.

The same step runs on one CPU and on a pod. Over a mesh, forward and backward are one `jax.shard_map`: every shard
computes with its own rows, tokens and heads, and the only collectives are those that `parallel/rules.py` implies. The
optimizer, elementwise, runs on the parts each device stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from stepaudio_jax.data import Batch
from stepaudio_jax.kernels import stripe, unstripe
from stepaudio_jax.models import AudioInput, StepAudio
from stepaudio_jax.models.layers import logical_axes, unstack
from stepaudio_jax.models.lora import MODULES, is_lora
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.parallel.collectives import sum_over, varying
from stepaudio_jax.parallel.rules import inside
from stepaudio_jax.training.losses import next_tokens, token_scores
from stepaudio_jax.training.objectives import NextToken, Objective, by_segment

Metrics = dict[str, Array]

TRAINABLE = (*MODULES, "lora", "value_head")


class TrainState(NamedTuple):
    """Parameters that are trained (float32) and those that are not (of the compute type), each a plain tree by module
    path; optimizer state of the former; steps taken."""

    params: Any
    frozen: Any
    opt_state: Any
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is computed.

    Attributes:
      remat: what the backward pass recomputes, a name in models.layers.REMAT_POLICIES.
      scan_layers: False writes the layers out one after another: a CPU then takes a sixth less time for a small
        model (benchmarks/README.md), for a longer compilation, and without `remat`.
      compute_dtype: parameters are cast to it once per step.
      vocab_chunks: how many chunks the vocabulary's logits are computed in.
      microbatches: how many batches, stacked along a leading axis of every array, make one optimizer step.
      length_rule: which frames count as audio, "hf" or "vllm".
      objective: what is minimised.

    Raises:
      ValueError: remat without scanned layers.
    """

    remat: str = "none"
    scan_layers: bool = True
    compute_dtype: Any = jnp.float32
    vocab_chunks: int = 1
    microbatches: int = 1
    length_rule: str = "hf"
    objective: Objective = dataclasses.field(default_factory=NextToken)

    def __post_init__(self):
        if not self.scan_layers and self.remat != "none":
            raise ValueError(f'remat: "{self.remat}" recomputes scanned layers; set scan_layers or remat = "none"')


def split_model(model: StepAudio, trainable: Sequence[str] = MODULES) -> tuple[nnx.GraphDef, Any, Any]:
    """The static graph, the parameters to train, and the others.

    Args:
      trainable: modules, "value_head" of a critic, and "lora" for the adapters of whatever module.

    Raises:
      ValueError: a name that is neither, or "lora" for a model without adapters.
    """
    if unknown := [name for name in trainable if name not in TRAINABLE] or (not trainable and ["nothing"]):
        raise ValueError(f"trainable: expected some of {', '.join(TRAINABLE)}, found {unknown[0]}")
    graphdef, variables = nnx.split(model, nnx.Param)
    flat = flatten_dict(nnx.to_pure_dict(variables))
    if "lora" in trainable and not any(map(is_lora, flat)):
        raise ValueError('trainable: found "lora", but the model has no adapters; give the config a lora section')

    def trains(path) -> bool:
        return path[0] in trainable or ("lora" in trainable and is_lora(path))

    params, frozen = ({k: v for k, v in flat.items() if trains(k) == wanted} for wanted in (True, False))
    return graphdef, unflatten_dict(params), unflatten_dict(frozen)


def init_state(
    model: StepAudio,
    optimizer: optax.GradientTransformation,
    *,
    trainable: Sequence[str] = MODULES,
    frozen_dtype: Any = jnp.float32,
) -> tuple[nnx.GraphDef, TrainState]:
    """Splits a model into its static graph and a fresh train state. Of arrays or of their shapes.

    Raises:
      ValueError: parameters to train that are not float32: a step of 1e-6 vanishes in bfloat16.
    """
    graphdef, params, frozen = split_model(model, trainable)
    if wrong := sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params) if leaf.dtype != jnp.float32}):
        raise ValueError(
            f"params: training needs float32 parameters, found {', '.join(wrong)}; load with dtype float32"
        )

    def rest(params, frozen):
        frozen = jax.tree.map(lambda leaf: leaf.astype(frozen_dtype), frozen)
        return frozen, optimizer.init(params), jnp.zeros((), jnp.int32)

    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    others: Any = jax.eval_shape(rest, params, frozen) if abstract else rest(params, frozen)
    return graphdef, TrainState(params, *others)


def state_specs(
    rules: ShardingRules, model: StepAudio, optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
    """Where each array of a train state lies: the optimizer's moments with their parameters, scalars everywhere."""
    specs = flatten_dict(rules.specs(logical_axes(nnx.state(model, nnx.Param))))
    params, frozen = (
        unflatten_dict({path: specs[path] for path in flatten_dict(tree)}) for tree in (state.params, state.frozen)
    )
    moments = optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        state.opt_state,
        params,
        transform_non_params=lambda _: PartitionSpec(),
    )
    everywhere: Any = PartitionSpec()
    return TrainState(params, frozen, moments, everywhere)


def batch_specs(rules: ShardingRules, batch: Batch, microbatches: int = 1) -> Batch:
    """Where each array of a batch lies."""

    def spec(*axes) -> Any:
        return PartitionSpec(*((None,) if microbatches > 1 else ()), *rules.spec(axes))

    rows = spec("batch", "length")
    sound = spec("chunks", None)
    audio = None if batch.audio is None else AudioInput(sound, sound, sound, rows)
    optional = batch.reference, batch.think_tokens, batch.groups
    reference, think_tokens, groups = (None if x is None else rows for x in optional)
    extra: Any = None if batch.extra is None else dict.fromkeys(batch.extra, rows)
    return Batch(rows, rows, rows, rows, rows, audio, reference, think_tokens, extra, groups)


def merge(graphdef: nnx.GraphDef, *params: Any, dtype: Any = None) -> StepAudio:
    """The model of parts of its parameters, cast to `dtype` if given."""
    together = unflatten_dict({path: leaf for part in params for path, leaf in flatten_dict(part).items()})
    if dtype is not None:
        together = jax.tree.map(lambda leaf: leaf.astype(dtype), together)
    return nnx.merge(graphdef, together)


def make_gradients(
    graphdef: nnx.GraphDef,
    options: StepOptions,
    *,
    rules: ShardingRules | None = None,
    specs: TrainState | None = None,
) -> Callable[..., tuple[Metrics, Any]]:
    """A function of (params, frozen, batch, targets, mask, count): what the objective reports, summed, and the
    gradients of its mean over `count`, each where its parameter lies.

    Args: as make_train_step; targets and mask of a batch by `next_tokens`.
    """
    objective = options.objective

    def evaluate(params, frozen, batch: Batch, targets, mask, count):
        model = merge(graphdef, params, frozen)
        if not options.scan_layers:
            model.decoder.layers = unstack(model.decoder.layers)
            model.encoder.layers = unstack(model.encoder.layers)
        scores = objective.scores(model, hidden_states(model, batch, options), targets, options.vocab_chunks)
        loss, sums = objective(scores, batch, mask)
        return loss / count, sums

    def gradients(params, frozen, batch: Batch, targets, mask, count):
        """Of this shard's parts of the parameters; everything is an array of this shard."""
        with inside(rules):
            shared, add_up = jax.vjp(varying, params)
            frozen = varying(frozen)
            compute = jax.tree.map(lambda leaf: leaf.astype(options.compute_dtype), shared)
            differentiate = jax.grad(evaluate, has_aux=True)
            if options.microbatches == 1:
                grads, sums = differentiate(compute, frozen, batch, targets, mask, count)
                grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)
            else:

                def accumulate(carry, microbatch: Any):
                    new = differentiate(compute, frozen, *microbatch, count)
                    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, new), None

                parts = batch, targets, mask
                first = jax.tree.map(lambda x: x[0], parts)
                _, sums = jax.eval_shape(evaluate, compute, frozen, *first, count)
                sums = {name: jnp.zeros(value.shape, value.dtype) for name, value in sums.items()}
                (grads, sums), _ = jax.lax.scan(accumulate, (jax.tree.map(jnp.zeros_like, shared), sums), parts)
            return sums, add_up(grads)[0]

    if rules is None or specs is None or not rules.axes:
        return gradients

    def over_mesh(params, frozen, batch: Batch, targets, mask, count):
        parts = batch_specs(rules, batch, options.microbatches)
        if (shards := rules.size(rules.split("length"))) > 1:
            batch, targets, mask = _striped(batch, targets, mask, shards)
        compute = jax.shard_map(
            gradients,
            mesh=rules.mesh,
            in_specs=(specs.params, specs.frozen, parts, parts.tokens, parts.tokens, PartitionSpec()),
            out_specs=(PartitionSpec(), specs.params),
        )
        return compute(params, frozen, batch, targets, mask, count)

    return over_mesh


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    options: StepOptions = StepOptions(),
    *,
    rules: ShardingRules | None = None,
    specs: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of an objective. Metrics: loss, accuracy, what else the objective reports, tokens (trained on), filled
    (tokens with context), think_tokens (mean of the think blocks trained on, nan without any), grad_norm.

    Args:
      rules, specs: the mesh, and where the state's arrays lie in it (`state_specs`); none on a single device.
    """
    objective = options.objective
    gradients = make_gradients(graphdef, options, rules=rules, specs=specs)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(jnp.asarray, batch)
        targets, mask = next_tokens(batch.tokens, batch.loss_mask)
        count = objective.count(batch, mask)
        counts = {"tokens": mask.sum(), "filled": (batch.segment_ids > 0).sum()}
        if batch.think_tokens is not None:
            counts["think_tokens"] = batch.think_tokens.sum() / (batch.think_tokens > 0).sum()
        sums, grads = gradients(state.params, state.frozen, batch, targets, mask, count)
        state, grad_norm = apply_gradients(optimizer, state, grads)
        return state, objective.metrics(sums, count) | counts | {"grad_norm": grad_norm}

    return step


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any
) -> tuple[TrainState, Float[Array, ""]]:
    """(the state one step on, the norm of the gradients)."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, state.frozen, opt_state, state.step + 1), optax.tree.norm(grads)


def make_reader(
    graphdef: nnx.GraphDef,
    options: StepOptions,
    read: Callable[..., Any],
    *,
    rules: ShardingRules | None = None,
    specs: TrainState | None = None,
    whole_rows: bool = False,
) -> Callable[[TrainState, Batch], Any]:
    """A function of (state, batch) that looks at a batch without training on it: what `read(model, hidden, batch,
    targets, mask)` gives, arrays [B, T] of a value a token.

    Args:
      whole_rows: `read` gives arrays [B, S] that are the same on all shards of a row.
      rules, specs: as make_train_step.
    """

    def of_shard(params, frozen, batch: Batch, targets, mask):
        with inside(rules):
            compute = jax.tree.map(lambda leaf: leaf.astype(options.compute_dtype), varying(params))
            model = merge(graphdef, compute, varying(frozen))

            def of_rows(rows):
                batch, targets, mask = rows
                return read(model, hidden_states(model, batch, options), batch, targets, mask)

            parts = batch, targets, mask
            return of_rows(parts) if options.microbatches == 1 else jax.lax.map(of_rows, parts)

    def reader(state: TrainState, batch: Batch) -> Any:
        batch = jax.tree.map(jnp.asarray, batch)
        targets, mask = next_tokens(batch.tokens, batch.loss_mask)
        if rules is None or specs is None or not rules.axes:
            return of_shard(state.params, state.frozen, batch, targets, mask)
        parts = batch_specs(rules, batch, options.microbatches)
        if (shards := rules.size(rules.split("length"))) > 1:
            batch, targets, mask = _striped(batch, targets, mask, shards)
        rows = PartitionSpec(*parts.tokens[:-1], None) if whole_rows else parts.tokens
        in_specs = specs.params, specs.frozen, parts, parts.tokens, parts.tokens
        found = jax.shard_map(of_shard, mesh=rules.mesh, in_specs=in_specs, out_specs=rows)(
            state.params, state.frozen, batch, targets, mask
        )
        if whole_rows or shards == 1:
            return found
        return jax.tree.map(lambda x: unstripe(x, shards, axis=x.ndim - 1), found)

    return reader


def make_segment_scores(
    graphdef: nnx.GraphDef,
    options: StepOptions = StepOptions(),
    *,
    rules: ShardingRules | None = None,
    specs: TrainState | None = None,
) -> Callable[[TrainState, Batch], Float[Array, "*M B S"]]:
    """A function of (state, batch): the log-probability of each segment's trained tokens, segment 1 first, S = T // 2.

    Args: as make_train_step.
    """

    def read(model, hidden, batch, targets, mask):
        scores = token_scores(hidden, model.decoder.head, targets, chunks=options.vocab_chunks)
        return sum_over(by_segment(jnp.where(mask, scores.log_probs, 0), batch.segment_ids), "length")

    return make_reader(graphdef, options, read, rules=rules, specs=specs, whole_rows=True)


def hidden_states(model: StepAudio, batch: Batch, options: StepOptions) -> Float[Array, "B T E"]:
    """The decoder's, of a batch."""
    return model.hidden(
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        batch.audio,
        groups=batch.groups,
        remat=options.remat,
        length_rule=options.length_rule,
    )


def _striped(batch: Batch, targets: Array, mask: Array, shards: int) -> tuple[Batch, Array, Array]:
    """A batch whose rows are dealt out for a ring: token t to shard t % shards."""

    def deal(x):
        return stripe(x, shards, axis=x.ndim - 1)

    audio = None if batch.audio is None else batch.audio._replace(slots=deal(batch.audio.slots))
    dealt = jax.tree.map(deal, batch._replace(audio=None))
    return dealt._replace(audio=audio), deal(targets), deal(mask)
