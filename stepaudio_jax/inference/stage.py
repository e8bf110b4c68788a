"""What serving runs, for the planner: the programs of the engine at the sizes of a config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inference.engine import laid_out
from stepaudio_jax.inference.options import EngineOptions
from stepaudio_jax.inference.programs import POOL_AXES, SCALE_AXES, SEEN_AXES, STOP_IDS, Programs, Rows
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.types import SamplingParams
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.parallel import Program, ShardingRules


def programs(config: Any, mesh: Mesh) -> dict[str, Program]:
    """Encoding of sound, a piece of a prompt and one decode step (parallel.Program).

    Args:
      config: model, dtype, vocab_size (entries of the tokenizer), batch_size (rows that decode together), cache_length
        (tokens a row, for all of which there are pages), page_size, burst, prefill_rows, prompt_length (tokens of a
        piece, the last of a row as long as `cache_length`), encode_chunks, weights and kv_cache ("int8" or None).

    Raises:
      ShardingError: sizes that do not divide over the mesh.
    """
    sizes = StepAudioConfig.preset(config.model)
    rules = ShardingRules(mesh, "serve")
    rules.check(sizes, {"batch": ("batch_size", config.batch_size)})
    rules.check(sizes, {"batch": ("prefill_rows", config.prefill_rows)})
    dtype = jnp.dtype(config.dtype)
    options = EngineOptions(weights=config.weights, kv_cache=config.kv_cache)
    model = nnx.eval_shape(lambda: laid_out(StepAudio(sizes, rngs=nnx.Rngs(0), dtype=dtype), options, rules))
    own = Programs(model, vocab_size=config.vocab_size, steps=config.burst, rules=rules)
    decoder, page_size = sizes.decoder, config.page_size

    def array(axes: tuple, kind: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=rules.sharding(axes))

    state_shardings = rules.shardings(rules.specs(own.axes))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        own.state,
        state_shardings,
    )

    batch, width = config.batch_size, -(-config.cache_length // page_size)
    rows_of_a_lane = batch // own.lanes
    quantised = options.kv_cache is not None
    shapes = own.memory_shapes(
        rows_of_a_lane * width, page_size, options.sounds, rows_of_a_lane, quantised=quantised
    )
    scale = array(SCALE_AXES, jnp.float32, *shapes.scale.shape) if quantised else None
    pages = array(POOL_AXES, shapes.pages.dtype, *shapes.pages.shape)
    features = array((None, None), shapes.features.dtype, *shapes.features.shape)
    seen = array(SEEN_AXES, jnp.bool_, *shapes.seen.shape)

    def program(fn, *arguments, groups: Any = None, **rest) -> Program:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, *arguments))
        return Program(fn, (state, *arguments), shardings, groups={"parameters": (0,)} | (groups or {}), **rest)

    chunks, samples = config.encode_chunks, lengths.CHUNK_SAMPLES
    encode = program(
        own.functions.hear_fn,
        features,
        array((None, None), jnp.float32, chunks, samples),
        array((None,), jnp.int32, chunks),
        array((None,), jnp.int32, chunks),
        donate=(1,),
        tokens=chunks * int(lengths.audio_tokens(samples)),
        flops=encoder_flops(sizes.audio, chunks, samples) + adaptor_flops(sizes.audio, chunks, samples),
        about=f"{chunks} chunks of {lengths.CHUNK_SECONDS} s",
    )

    rows, length = config.prefill_rows, config.prompt_length
    row, table = ("batch",), ("batch", None)
    prompt, numbers = array(table, jnp.int32, rows, length), array(row, jnp.int32, rows)
    before = config.cache_length - length
    prefill = program(
        own.functions.prefill_fn,
        *(pages, scale, features, prompt, prompt, numbers, numbers, array(table, jnp.int32, rows, width)),
        donate=(1,),
        groups={"KV cache": (1,)},
        tokens=rows * length,
        flops=decoder_flops(decoder, rows * length, rows * (causal_pairs(length) + before * length), logits=0),
        about=f"{rows} pieces of {length:,} tokens, after {before:,}",
    )

    integers = array(row, jnp.int32, batch)
    sampling: Any = [array(row, x.dtype, batch) for x in map(np.asarray, SamplingArrays.stack([SamplingParams()]))]
    deciding = Rows(
        tokens=integers,
        positions=integers,
        steps=integers,
        forced=array(table, jnp.int32, batch, config.burst),
        stop_ids=array(table, jnp.int32, batch, STOP_IDS),
        places=integers,
        page_table=array(table, jnp.int32, batch, width),
        sampling=SamplingArrays(*sampling),
    )
    decode = program(
        own.functions.decode_fn,
        *(pages, scale, seen, deciding, array((), jnp.int32)),
        donate=(1, 3),
        groups={"KV cache": (1,)},
        tokens=batch,
        flops=decoder_flops(decoder, batch, batch * config.cache_length),
        about=f"one step of {batch} rows of {config.cache_length:,} tokens",
    )
    return {"encode": encode, "prefill": prefill, "decode": decode}
