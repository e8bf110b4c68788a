"""The supervised stage on a mesh: its train step, where everything lies, and the shapes and arithmetic of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.audio.lengths import CHUNK_SAMPLES
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch, sound_shape
from stepaudio_jax.models import AudioInput, StepAudio
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.parallel import Program, ShardingRules
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.guard import guarded
from stepaudio_jax.training.initial import init_model, lora_config, new_model
from stepaudio_jax.training.objectives import DPO, NextToken, Objective
from stepaudio_jax.training.optimizer import check_groups, make_optimizer
from stepaudio_jax.training.step import (
    StepOptions,
    TrainState,
    batch_specs,
    init_state,
    make_segment_scores,
    make_train_step,
    state_specs,
)


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
    options: StepOptions
    forward_flops: float

    def new_state(self, config: Config) -> TrainState:
        """A fresh state: of the checkpoint `config.init`, or random weights, each device making its own parts."""
        shardings = self.rules.shardings(self.specs)
        model = init_model(config, self.rules)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

        def start(params):
            loaded = nnx.merge(nnx.graphdef(model), params)
            return init_state(loaded, self.optimizer, trainable=config.trainable, frozen_dtype=config.compute_dtype)[1]

        return jax.jit(start, out_shardings=shardings)(params)

    def segment_scores(self) -> Program:
        """The log-probability of each segment's trained tokens, on every device: the forward pass alone, of a state
        whose optimizer's may be missing."""
        graphdef, everywhere = nnx.graphdef(self.model), NamedSharding(self.rules.mesh, PartitionSpec())
        state, batch = self.program.abstract_args[:2]
        state_shardings, batch_shardings = self.program.in_shardings[:2]
        return dataclasses.replace(
            self.program,
            fn=make_segment_scores(graphdef, self.options, rules=self.rules, specs=self.specs),
            abstract_args=(state._replace(opt_state=None), batch),
            in_shardings=(state_shardings._replace(opt_state=None), batch_shardings),
            out_shardings=everywhere,
            donate=(),
            groups={name: path for name, path in self.program.groups.items() if name != "optimizer state"},
            flops=self.forward_flops,
            repeated_flops=0.0,
        )

    @property
    def microbatches(self) -> int:
        tokens = self.program.abstract_args[1].tokens
        return tokens.shape[0] if tokens.ndim == 3 else 1

    @property
    def sound_parts(self) -> int:
        """Shards that share the sound of a row of tokens (data.sound_shape)."""
        return sound_parts(self.rules)

    def abstract_state(self) -> TrainState:
        """The shapes of the state with their shardings, as a checkpoint is restored by."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.state,
            self.rules.shardings(self.specs),
        )

    def local_shares(self) -> list[int]:
        """Of the equal shares that rows, and their sound with them, are split into, those of this process's devices."""
        rows = NamedSharding(self.rules.mesh, self.rules.spec(("batch",)))
        shares = self.rules.size(self.rules.split("batch"))
        slices: Any = rows.addressable_devices_indices_map((shares,)).values()
        return sorted({share for at in slices for share in range(shares)[at[0]]})

    def local_rows(self) -> list[int]:
        """The rows of a step that this process has to bring, counted m · R + r over microbatches of R rows."""
        rows = self.program.abstract_args[1].tokens.shape[-2]
        per = rows // self.rules.size(self.rules.split("batch"))
        mine = [row for share in self.local_shares() for row in range(share * per, (share + 1) * per)]
        return [m * rows + row for m in range(self.microbatches) for row in mine]

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

        return jax.tree.map(whole, batch, self.program.in_shardings[1])


def prepare(config: Config, mesh: Mesh) -> Stage:
    """The stage of a config on a mesh.

    Raises:
      ShardingError, ConfigError, ValueError: sizes that do not divide over the mesh, or a field that cannot be used.
    """
    sizes = StepAudioConfig.preset(config.model)
    rules = ShardingRules(mesh, "train")
    batch = abstract_batch(config, sound_parts(rules))
    lead = 1 if config.microbatches > 1 else 0
    rows, length = batch.tokens.shape[lead:]
    what = f"data.batch_size / microbatches = {config.data.batch_size} / {config.microbatches} rows" if lead else None
    rules.check(
        sizes,
        {
            "batch": (what or "data.batch_size", rows),
            "length": ("data.buckets: a row of tokens", length),
        },
    )
    optimizer = make_optimizer(config.optim, config.steps)
    model = nnx.eval_shape(lambda: new_model(config))
    graphdef, state = init_state(
        model, optimizer, trainable=config.trainable, frozen_dtype=jnp.dtype(config.compute_dtype)
    )
    check_groups(config.optim, state.params)
    specs = state_specs(rules, model, optimizer, state)
    options = StepOptions(
        remat=config.remat,
        scan_layers=config.scan_layers,
        compute_dtype=jnp.dtype(config.compute_dtype),
        vocab_chunks=config.vocab_chunks,
        microbatches=config.microbatches,
        objective=objective(config),
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
        flops=step_flops(config, sizes, length, trained=config.trainable),
        repeated_flops=2.0 * config.data.batch_size * length * sizes.decoder.hidden_size * sizes.decoder.vocab_size
        if config.vocab_chunks > 1
        else 0.0,
        about=f"{config.data.batch_size} rows of {length:,} tokens"
        + (f" in {config.microbatches} microbatches" if lead else ""),
    )
    forward_flops = step_flops(config, sizes, length, trained=())
    return Stage(model, optimizer, rules, state, specs, program, options, forward_flops)


def sound_parts(rules: ShardingRules) -> int:
    """Shards that share the sound of a row of tokens."""
    return rules.size(rules.split("chunks")) // rules.size(rules.split("batch"))


def objective(config: Config) -> Objective:
    """DPO for a config with a `dpo` section, else cross-entropy."""
    if "dpo" in config:
        return DPO(**config.dpo)
    return NextToken(z_loss=config.get("z_loss", 0.0), sources=tuple(config.data.get("sources", ())))


def programs(config: Config, mesh: Mesh) -> dict[str, Program]:
    """What the trainer runs, for its largest bucket (parallel.Program)."""
    stage = prepare(config, mesh)
    return {"train step": stage.program} | ({"reference": stage.segment_scores()} if "dpo" in config else {})


def abstract_batch(config: Config, parts: int) -> Batch:
    """The shapes of a batch in the largest bucket.

    Args:
      parts: shards that share the sound of a row (data.sound_shape).
    """
    data, microbatches = config.data, config.microbatches
    if data.batch_size % microbatches:
        raise ValueError(
            f"microbatches: {microbatches} does not divide data.batch_size {data.batch_size}; "
            f"the nearest that does is {_nearest_divisor(data.batch_size, microbatches)}"
        )
    lead = (microbatches,) if microbatches > 1 else ()
    rows = data.batch_size // microbatches
    length, samples = max(data.buckets)
    sound_rows, samples = sound_shape(samples, parts)
    sound_rows *= rows

    def array(dtype, *shape) -> Any:
        return jax.ShapeDtypeStruct((*lead, *shape), dtype)

    tokens = array(jnp.int32, rows, length)
    units = array(jnp.int32, sound_rows, samples // UNIT_SAMPLES)
    audio = AudioInput(array(jnp.float32, sound_rows, samples), units, units, tokens) if sound_rows else None
    reference = array(jnp.float32, rows, length) if "dpo" in config else None
    return Batch(tokens, tokens, tokens, array(jnp.bool_, rows, length), tokens, audio, reference, tokens)


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))


def step_flops(config: Config, sizes: StepAudioConfig, length: int, *, trained: Sequence[str]) -> float:
    """What a step's forward and backward passes need, rows counted as one segment: three forward passes of what is
    trained, one of what is not, two beside adapters, whose own work is left out; nothing flows back beyond the first
    module that is trained. Sound counts as chunks of the longest length."""
    rows, samples = config.data.batch_size, max(config.data.buckets)[1]
    chunk = min(samples, CHUNK_SAMPLES)
    lora = lora_config(config)
    adapted = lora.modules if lora is not None and "lora" in trained else ()

    def passes(*modules: str) -> int:
        """Forward; back to its inputs, if something is trained at or before it; and to its weights."""
        return 1 + any(name in (*trained, *adapted) for name in modules) + (modules[-1] in trained)

    total = passes("encoder", "adaptor", "decoder") * decoder_flops(
        sizes.decoder, rows * length, rows * causal_pairs(length)
    )
    if samples:
        chunks = rows * samples / chunk
        total += passes("encoder") * encoder_flops(sizes.audio, chunks, chunk)
        total += passes("encoder", "adaptor") * adaptor_flops(sizes.audio, chunks, chunk)
    return total
