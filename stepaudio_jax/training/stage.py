"""The supervised stage on a mesh: its train step, where everything lies, and the shapes and arithmetic of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax import checkpoints
from stepaudio_jax.audio import lengths
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch
from stepaudio_jax.models import AudioInput, StepAudio
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.models.layers import logical_axes
from stepaudio_jax.parallel import Program, ShardingRules
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.guard import guarded
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.step import StepOptions, TrainState, batch_specs, init_state, make_train_step, state_specs


@dataclasses.dataclass(frozen=True)
class Stage:
    """A supervised stage on a mesh: its train step and where everything lies."""

    model: StepAudio
    optimizer: optax.GradientTransformation
    rules: ShardingRules
    state: TrainState
    """Shapes, as `specs`."""
    specs: TrainState
    program: Program

    def new_state(self, config: Config) -> TrainState:
        """A fresh state: of the checkpoint `config.init`, or random weights, each device making its own parts."""
        shardings = self.rules.shardings(self.specs)
        model = init_model(config, self.rules)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

        def start(params):
            loaded = nnx.merge(nnx.graphdef(model), params)
            return init_state(loaded, self.optimizer, trainable=config.trainable, frozen_dtype=config.compute_dtype)[1]

        return jax.jit(start, out_shardings=shardings)(params)

    def abstract_state(self) -> TrainState:
        """The shapes of the state with their shardings, as a checkpoint is restored by."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.state,
            self.rules.shardings(self.specs),
        )

    def local_shares(self) -> list[int]:
        """Of the equal shares that rows, and chunks with them, are split into, those of this process's devices."""
        rows = NamedSharding(self.rules.mesh, self.rules.spec(("batch",)))
        shares = self.rules.size(self.rules.split("batch"))
        slices: Any = rows.addressable_devices_indices_map((shares,)).values()
        return sorted({share for at in slices for share in range(shares)[at[0]]})

    def local_rows(self) -> list[int]:
        """The rows of a step that this process has to bring, counted m · R + r over microbatches of R rows."""
        batch = self.program.abstract_args[1]
        microbatches, rows = ((1, *batch.tokens.shape) if batch.tokens.ndim == 2 else batch.tokens.shape)[:2]
        per = rows // self.rules.size(self.rules.split("batch"))
        mine = [row for share in self.local_shares() for row in range(share * per, (share + 1) * per)]
        return [m * rows + row for m in range(microbatches) for row in mine]

    def place(self, batch: Batch) -> Batch:
        """The whole batch over all processes' devices, from this process's rows.

        Args:
          batch: as `collate` lays out the rows `local_rows`, with as many shards as `local_shares`.
        """
        if self.rules.mesh.size == 1:
            return batch
        shares, mine = self.rules.size(self.rules.split("batch")), self.local_shares()
        lead = batch.tokens.ndim - 2

        def whole(x, sharding):
            part = x.shape[lead] // len(mine)

            def piece(at):
                start, stop, _ = at[lead].indices(part * shares)
                share, offset = divmod(start, part)
                first = mine.index(share) * part + offset
                return x[(*at[:lead], slice(first, first + stop - start), *at[lead + 1 :])]

            shape = (*x.shape[:lead], part * shares, *x.shape[lead + 1 :])
            return jax.make_array_from_callback(shape, sharding, piece)

        return jax.tree.map(whole, _counted_over_all(batch, shares, mine, lead), self.program.in_shardings[1])


def _counted_over_all(batch: Batch, shares: int, mine: list[int], lead: int) -> Batch:
    """A batch whose slots count the features of every process's chunks, not of this one's alone."""
    if batch.audio is None or len(mine) == shares:
        return batch
    samples, slots = batch.audio.samples, batch.audio.slots
    features = samples.shape[lead] // len(mine) * int(lengths.adaptor_frames(samples.shape[-1]))
    shift = np.repeat((np.array(mine) - np.arange(len(mine))) * features, slots.shape[lead] // len(mine))
    slots = np.where(slots < 0, slots, slots + shift[:, None].astype(np.int32))
    return batch._replace(audio=batch.audio._replace(slots=slots))


def prepare(config: Config, mesh: Mesh) -> Stage:
    """The stage of a config on a mesh.

    Raises:
      ShardingError, ConfigError, ValueError: sizes that do not divide over the mesh, or a field that cannot be used.
    """
    sizes = StepAudioConfig.preset(config.model)
    rules = ShardingRules(mesh, "train")
    batch = abstract_batch(config)
    lead = 1 if config.microbatches > 1 else 0
    rows, length = batch.tokens.shape[lead:]
    what = f"data.batch_size / microbatches = {config.data.batch_size} / {config.microbatches} rows" if lead else None
    rules.check(
        sizes,
        {
            "batch": (what or "data.batch_size", rows),
            "length": ("data.buckets: a row of tokens", length),
            "chunks": ("data.chunks_per_row x rows: audio chunks", rows * config.data.chunks_per_row),
        },
    )
    optimizer = make_optimizer(config.optim, config.steps)
    model = nnx.eval_shape(lambda: StepAudio(sizes, rngs=nnx.Rngs(0)))
    graphdef, state = init_state(
        model, optimizer, trainable=config.trainable, frozen_dtype=jnp.dtype(config.compute_dtype)
    )
    specs = state_specs(rules, model, optimizer, state)
    options = StepOptions(
        remat=config.remat,
        scan_layers=config.scan_layers,
        compute_dtype=jnp.dtype(config.compute_dtype),
        vocab_chunks=config.vocab_chunks,
        microbatches=config.microbatches,
    )
    step = make_train_step(graphdef, optimizer, options, rules=rules, specs=specs)
    state_shardings = rules.shardings(specs)
    program = Program(
        fn=guarded(step),
        abstract_args=(state, batch, jax.ShapeDtypeStruct((), jnp.float32)),
        in_shardings=(
            state_shardings,
            rules.shardings(batch_specs(rules, batch, config.microbatches)),
            NamedSharding(rules.mesh, PartitionSpec()),
        ),
        out_shardings=(state_shardings, None),
        donate=(0,),
        groups={
            "parameters": (0, "params"),
            "frozen parameters": (0, "frozen"),
            "optimizer state": (0, "opt_state"),
            "batch": (1,),
        },
        tokens=config.data.batch_size * length,
        flops=step_flops(config, sizes, length),
        repeated_flops=2.0 * config.data.batch_size * length * sizes.decoder.hidden_size * sizes.decoder.vocab_size
        if config.vocab_chunks > 1
        else 0.0,
        about=f"{config.data.batch_size} rows of {length:,} tokens"
        + (f" in {config.microbatches} microbatches" if lead else ""),
    )
    return Stage(model, optimizer, rules, state, specs, program)


def programs(config: Config, mesh: Mesh) -> dict[str, Program]:
    """What the trainer runs, for its largest bucket (parallel.Program)."""
    return {"train step": prepare(config, mesh).program}


def abstract_batch(config: Config) -> Batch:
    """The shapes of a batch in the largest bucket."""
    data, microbatches = config.data, config.microbatches
    if data.batch_size % microbatches:
        raise ValueError(
            f"microbatches: {microbatches} does not divide data.batch_size {data.batch_size}; "
            f"the nearest that does is {_nearest_divisor(data.batch_size, microbatches)}"
        )
    lead = (microbatches,) if microbatches > 1 else ()
    rows = data.batch_size // microbatches
    length, samples = max(data.buckets)
    chunks = rows * data.chunks_per_row

    def array(dtype, *shape) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), dtype)

    tokens = array(jnp.int32, rows, length)
    audio = AudioInput(array(jnp.float32, chunks, samples), array(jnp.int32, chunks), tokens) if chunks else None
    return Batch(tokens, tokens, tokens, array(jnp.bool_, rows, length), audio)


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))


def step_flops(config: Config, sizes: StepAudioConfig, length: int) -> float:
    """What a step's forward and backward passes need, rows counted as one segment: three forward passes of what is
    trained, one of what is not; nothing flows back beyond the first module that is trained."""
    rows, chunks = config.data.batch_size, config.data.batch_size * config.data.chunks_per_row
    samples = max(config.data.buckets)[1]

    def passes(*modules: str) -> int:
        """Forward; back to its inputs, if something is trained at or before it; and to its weights."""
        return 1 + any(name in config.trainable for name in modules) + (modules[-1] in config.trainable)

    total = passes("encoder", "adaptor", "decoder") * decoder_flops(
        sizes.decoder, rows * length, rows * causal_pairs(length)
    )
    if chunks:
        total += passes("encoder") * encoder_flops(sizes.audio, chunks, samples)
        total += passes("encoder", "adaptor") * adaptor_flops(sizes.audio, chunks, samples)
    return total


def init_model(config: Config, rules: ShardingRules) -> StepAudio:
    """The model of a config, each parameter where the rules put it: of the checkpoint `config.init`, or random weights,
    made under one jit."""
    if config.init:
        return checkpoints.load(config.init, dtype=jnp.float32, placement=rules.sharding)[0]
    sizes = StepAudioConfig.preset(config.model)
    abstract = nnx.eval_shape(lambda: StepAudio(sizes, rngs=nnx.Rngs(0)))
    shardings = rules.shardings(rules.specs(logical_axes(nnx.state(abstract, nnx.Param))))

    def make():
        return nnx.to_pure_dict(nnx.state(StepAudio(sizes, rngs=nnx.Rngs(config.seed)), nnx.Param))

    return nnx.merge(nnx.graphdef(abstract), jax.jit(make, out_shardings=shardings)())
