"""The supervised stage on a mesh: its train step, where everything lies, and the shapes and arithmetic of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from stepaudio_jax import checkpoints
from stepaudio_jax.audio.lengths import CHUNK_SAMPLES
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch, sound_shape
from stepaudio_jax.models import AudioInput, LoraConfig, StepAudio, add_lora
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.models.layers import logical_axes
from stepaudio_jax.parallel import Program, ShardingRules
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.optimizer import check_groups, make_optimizer
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

    def place(self, batch: Batch) -> Batch:
        """A batch that every process has, each device holding its part."""
        shardings = self.program.in_shardings[1]
        if self.rules.mesh.size == 1:
            return batch
        return jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at]), batch, shardings
        )


def prepare(config: Config, mesh: Mesh) -> Stage:
    """The stage of a config on a mesh.

    Raises:
      ShardingError, ConfigError, ValueError: sizes that do not divide over the mesh, or a field that cannot be used.
    """
    sizes = StepAudioConfig.preset(config.model)
    rules = ShardingRules(mesh, "train")
    parts = rules.size(rules.split("chunks")) // rules.size(rules.split("batch"))
    batch = abstract_batch(config, parts)
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
    )
    step = make_train_step(graphdef, optimizer, options, rules=rules, specs=specs)
    state_shardings = rules.shardings(specs)
    program = Program(
        fn=step,
        abstract_args=(state, batch),
        in_shardings=(state_shardings, rules.shardings(batch_specs(rules, batch, config.microbatches))),
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
    return Batch(tokens, tokens, tokens, array(jnp.bool_, rows, length), tokens, audio)


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))


def step_flops(config: Config, sizes: StepAudioConfig, length: int) -> float:
    """What a step's forward and backward passes need, rows counted as one segment: three forward passes of what is
    trained, one of what is not, two beside adapters, whose own work is left out; nothing flows back beyond the first
    module that is trained. Sound counts as chunks of the longest length."""
    rows, samples = config.data.batch_size, max(config.data.buckets)[1]
    chunk = min(samples, CHUNK_SAMPLES)
    lora = lora_config(config)
    adapted = lora.modules if lora is not None and "lora" in config.trainable else ()

    def passes(*modules: str) -> int:
        """Forward; back to its inputs, if something is trained at or before it; and to its weights."""
        return 1 + any(name in (*config.trainable, *adapted) for name in modules) + (modules[-1] in config.trainable)

    total = passes("encoder", "adaptor", "decoder") * decoder_flops(
        sizes.decoder, rows * length, rows * causal_pairs(length)
    )
    if samples:
        chunks = rows * samples / chunk
        total += passes("encoder") * encoder_flops(sizes.audio, chunks, chunk)
        total += passes("encoder", "adaptor") * adaptor_flops(sizes.audio, chunks, chunk)
    return total


def lora_config(config: Config) -> LoraConfig | None:
    """The adapters of a config, if it has a `lora` section."""
    return LoraConfig(**config.lora) if "lora" in config else None


def new_model(config: Config) -> StepAudio:
    """A model of a config's size with random weights, and its adapters."""
    model = StepAudio(StepAudioConfig.preset(config.model), rngs=nnx.Rngs(config.seed))
    if (lora := lora_config(config)) is not None:
        add_lora(model, lora, nnx.Rngs(config.seed))
    return model


def init_model(config: Config, rules: ShardingRules) -> StepAudio:
    """The model of a config, each parameter where the rules put it: of the checkpoint `config.init`, or random weights,
    and fresh adapters, made under one jit."""
    abstract = nnx.eval_shape(lambda: new_model(config))
    loaded = {}
    if config.init:
        # What is trained is float32; where only adapters are, the rest need never be so large.
        dtype = config.compute_dtype if tuple(config.trainable) == ("lora",) else jnp.float32
        model, _ = checkpoints.load(config.init, dtype=dtype, placement=rules.sharding)
        loaded = flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    specs = flatten_dict(rules.specs(logical_axes(nnx.state(abstract, nnx.Param))))
    shardings = rules.shardings({path: spec for path, spec in specs.items() if path not in loaded})

    def make():
        made = flatten_dict(nnx.to_pure_dict(nnx.state(new_model(config), nnx.Param)))
        return {path: made[path] for path in shardings}

    fresh = jax.jit(make, out_shardings=shardings)()
    return nnx.merge(nnx.graphdef(abstract), unflatten_dict(loaded | fresh))
