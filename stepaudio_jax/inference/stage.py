"""What serving runs, for the planner: the programs of the generation loop at the sizes of a config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inference.loop import STOP_IDS
from stepaudio_jax.inference.programs import CACHE_AXES, Programs
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.types import SamplingParams
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.parallel import Program, ShardingRules


def programs(config: Any, mesh: Mesh) -> dict[str, Program]:
    """Encoding of audio, prefill of prompts and one decode step (parallel.Program).

    Args:
      config: model, dtype, vocab_size (entries of the tokenizer), batch_size (rows that decode together), cache_length
        (slots a row), burst, prefill_rows, prompt_length, encode_chunks.

    Raises:
      ShardingError: sizes that do not divide over the mesh.
    """
    sizes = StepAudioConfig.preset(config.model)
    rules = ShardingRules(mesh, "serve")
    rules.check(sizes, {"batch": ("batch_size", config.batch_size), "length": ("cache_length", config.cache_length)})
    rules.check(
        sizes, {"batch": ("prefill_rows", config.prefill_rows), "length": ("prompt_length", config.prompt_length)}
    )
    dtype = jnp.dtype(config.dtype)
    model = nnx.eval_shape(lambda: StepAudio(sizes, rngs=nnx.Rngs(0), dtype=dtype))
    own = Programs(model, vocab_size=config.vocab_size, steps=config.burst, rules=rules)
    decoder = sizes.decoder

    def array(axes: tuple, kind: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=rules.sharding(axes))

    state_shardings = rules.shardings(rules.specs(own.axes))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        own.state,
        state_shardings,
    )
    weights = {"parameters": (0,)}

    def program(fn, *arguments, **rest) -> Program:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, *arguments))
        groups = weights | rest.pop("groups", {})
        return Program(fn, (state, *arguments), shardings, groups=groups, **rest)

    chunks, samples = config.encode_chunks, lengths.CHUNK_SAMPLES
    encode = program(
        own.encode_fn,
        array((None, None), jnp.float32, chunks, samples),
        array((None,), jnp.int32, chunks),
        tokens=chunks * int(lengths.audio_tokens(samples)),
        flops=encoder_flops(sizes.audio, chunks, samples) + adaptor_flops(sizes.audio, chunks, samples),
        about=f"{chunks} chunks of {lengths.CHUNK_SECONDS} s",
    )

    rows, length = config.prefill_rows, config.prompt_length
    prompt = array(("batch", None), jnp.int32, rows, length)
    prefill = program(
        lambda state, tokens, slots, features: own.prefill_fn(state, tokens, slots, features, length),
        prompt,
        prompt,
        array((None, None), dtype, length, decoder.hidden_size),
        tokens=rows * length,
        flops=decoder_flops(decoder, rows * length, rows * causal_pairs(length), logits=0),
        about=f"{rows} prompts of {length:,} tokens",
    )

    batch, slots = config.batch_size, config.cache_length
    cache_shape = decoder.num_hidden_layers, batch, decoder.num_key_value_heads, slots, decoder.head_dim
    cache = array(CACHE_AXES, dtype, *cache_shape)
    row, table = ("batch",), ("batch", None)
    sampling: Any = [array(row, x.dtype, batch) for x in map(np.asarray, SamplingArrays.stack([SamplingParams()]))]
    decode = program(
        own.decode_fn,
        (cache, cache),
        array(row, jnp.int32, batch),
        array(row, jnp.int32, batch),
        array(row, jnp.bool_, batch),
        array(table, jnp.int32, batch, config.burst),
        array(table, jnp.int32, batch, STOP_IDS),
        array(table, jnp.bool_, batch, decoder.vocab_size),
        SamplingArrays(*sampling),
        array((), jnp.int32),
        donate=(1,),
        groups={"KV cache": (1,)},
        tokens=batch,
        flops=decoder_flops(decoder, batch, batch * slots),
        about=f"one step of {batch} rows with {slots:,} slots each",
    )
    return {"encode": encode, "prefill": prefill, "decode": decode}
