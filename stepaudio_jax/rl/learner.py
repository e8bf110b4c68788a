"""A model that is trained on rollouts: its state, and the compiled passes over batches of them.

An optimizer step is a sum over as many batches of one shape as a rollout fills: gradients are added up batch by batch,
then applied. Every pass runs over the mesh as the supervised step does (training/step.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from stepaudio_jax.data.examples import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.training.losses import next_tokens, token_scores
from stepaudio_jax.training.step import (
    StepOptions,
    TrainState,
    apply_gradients,
    batch_specs,
    init_state,
    make_gradients,
    make_reader,
    merge,
    state_specs,
)

Read = Callable[..., dict[str, jax.Array]]


class Passes:
    """The compiled passes of one model structure, which learners of that structure share: a run that is begun again in
    a process, or the next of several runs, compiles nothing anew. They hold no weights.

    Attributes:
      graphdef, shapes, specs: of the model and of its state.
      gradients, reader: see `Learner`.
      accumulate, apply, zeros, read: compiled.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Any,
        optimizer: optax.GradientTransformation,
        options: StepOptions,
        read: Read,
        trainable: Sequence[str],
        rules: ShardingRules,
    ):
        self.graphdef = graphdef
        model = nnx.merge(graphdef, params)
        _, self.shapes = init_state(model, optimizer, trainable=trainable, frozen_dtype=options.compute_dtype)
        self.specs = state_specs(rules, model, optimizer, self.shapes)
        shardings = rules.shardings(self.specs)
        gradients = make_gradients(graphdef, options, rules=rules, specs=self.specs)

        def accumulate(params, frozen, total, batch):
            batch = jax.tree.map(jnp.asarray, batch)
            targets, mask = next_tokens(batch.tokens, batch.loss_mask)
            sums, grads = gradients(params, frozen, batch, targets, mask, jnp.ones((), jnp.float32))
            return jax.tree.map(jnp.add, total, grads), sums

        def start(params):
            made = nnx.merge(graphdef, params)
            return init_state(made, optimizer, trainable=trainable, frozen_dtype=options.compute_dtype)[1]

        everywhere = NamedSharding(rules.mesh, PartitionSpec())
        self.gradients, self.reader = accumulate, make_reader(graphdef, options, read, rules=rules, specs=self.specs)
        self.start = jax.jit(start, out_shardings=shardings)
        self.accumulate = jax.jit(accumulate, donate_argnums=2, out_shardings=(shardings.params, everywhere))
        self.apply = jax.jit(
            lambda state, grads: apply_gradients(optimizer, state, grads),
            donate_argnums=0,
            out_shardings=(shardings._replace(frozen=None), everywhere),
        )
        self.zeros = jax.jit(
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), self.shapes.params),
            out_shardings=shardings.params,
        )
        self.read = jax.jit(self.reader, out_shardings=everywhere)


@functools.lru_cache(maxsize=8)
def _passes_of(graphdef, structure, leaves, *rest) -> Passes:
    """By what they are compiled for: equal arguments give the same passes."""
    return Passes(graphdef, jax.tree.unflatten(structure, leaves), *rest)


class Learner:
    """
    Attributes:
      state: parameters and the optimizer's state.
      options: how a pass is computed.
      gradients: (parameters, frozen ones, gradients so far, batch) → those with the batch's, and what it reports.
      reader: (state, batch) → what `read` says of the batch.
    """

    def __init__(
        self,
        model: StepAudio,
        optimizer: optax.GradientTransformation,
        options: StepOptions,
        read: Read,
        *,
        trainable: Sequence[str],
        rules: ShardingRules,
    ):
        """
        Args:
          model: of shapes, or of arrays, which are not looked at: `begin` takes those.
          read: of a batch without training on it, see `training.step.make_reader`. Equal ones share compiled passes.
        """
        self.options, self.rules = options, rules
        abstract = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        leaves, structure = jax.tree.flatten(abstract)
        self._passes = _passes_of(
            nnx.graphdef(model), structure, tuple(leaves), optimizer, options, read, tuple(trainable), rules
        )
        self.graphdef, self.specs = self._passes.graphdef, self._passes.specs
        self.gradients, self.reader = self._passes.gradients, self._passes.reader

    def begin(self, model: StepAudio) -> Learner:
        """A fresh state of a model's arrays, which lie where the rules put them."""

        self.state: TrainState = self._passes.start(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        return self

    def read(self, batches: Sequence[Batch], state: TrainState | None = None) -> list[dict[str, np.ndarray]]:
        """What `read` says of each batch, [B, T] arrays on the host of every process; of other parameters if given."""
        state = (state or self.state)._replace(opt_state=None)
        return [jax.device_get(self._passes.read(state, self.place(batch))) for batch in batches]

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step on all of them; what the objective reports, and the norm of the gradients."""
        total, sums = self._passes.zeros(), []
        for batch in batches:
            total, part = self._passes.accumulate(self.state.params, self.state.frozen, total, self.place(batch))
            sums.append(part)
        frozen = self.state.frozen  # not given away: a reference may share it
        state, norm = self._passes.apply(self.state._replace(frozen=None), total)
        self.state = state._replace(frozen=frozen)
        found = jax.device_get(sums)
        return {name: float(sum(part[name] for part in found)) for name in found[0]} | {"grad_norm": float(norm)}

    def place(self, batch: Batch) -> Batch:
        """A batch that every process has whole, over the devices."""
        if self.rules.mesh.size == 1:
            return batch
        shardings = self.rules.shardings(batch_specs(self.rules, batch))
        return jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda at: np.asarray(x)[at]),
            batch,
            shardings,
        )

    def model(self, dtype: Any = None, state: TrainState | None = None) -> StepAudio:
        """With the present parameters, or others."""
        state = state or self.state
        return merge(self.graphdef, state.params, state.frozen, dtype=dtype)

    def kept(self, dtype: Any = None) -> TrainState:
        """The present parameters, which later steps leave alone, without an optimizer's state; those that are trained
        in a dtype, if one is named: one that all is computed in loses nothing."""
        params = jax.tree.map(lambda x: jnp.array(x, dtype or x.dtype), self.state.params)
        return TrainState(params, self.state.frozen, None, self.state.step)

    def taken(self, state: TrainState) -> TrainState:
        """Another learner's parameters of the same model, as they lie in this one."""
        own = self.rules.shardings(self.specs)
        given, where = (state.params, state.frozen, state.step), (own.params, own.frozen, own.step)
        params, frozen, step = jax.device_put(given, where)
        return TrainState(params, frozen, None, step)

    def abstract_state(self) -> TrainState:
        """Shapes with their shardings, as a checkpoint is restored by."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._passes.shapes,
            self.rules.shardings(self.specs),
        )


@dataclasses.dataclass(frozen=True)
class PolicyReader:
    """Log-probability and entropy of each token that is to be predicted.

    Attributes:
      temperature: the policy is the distribution at this temperature, as its replies are sampled.
      chunks: of the vocabulary, see `token_scores`.
    """

    temperature: float = 1.0
    chunks: int = 1

    def __call__(self, model, hidden, batch, targets, mask):
        scores = token_scores(
            hidden, model.decoder.head, targets, chunks=self.chunks, temperature=self.temperature, entropy=True
        )
        return {"log_probs": scores.log_probs, "entropy": scores.entropy}


def read_critic(model, hidden, batch, targets, mask):
    """What is expected from each place on."""
    return {"values": model.values(hidden)}
