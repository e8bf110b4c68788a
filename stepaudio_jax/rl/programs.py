"""What an update of RL runs, for the planner: the passes of policy and critic, the hand-over, and the engine's
programs, each with all that is in memory beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from stepaudio_jax.audio.lengths import CHUNK_SAMPLES
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data.examples import Batch
from stepaudio_jax.inference import stage as serving
from stepaudio_jax.models import AudioInput
from stepaudio_jax.models.flops import adaptor_flops, causal_pairs, decoder_flops, encoder_flops
from stepaudio_jax.parallel import Program, ShardingRules
from stepaudio_jax.rl.rollout import Layout
from stepaudio_jax.rl.stage import critic_of, layout_of, policy_of
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.step import TrainState, batch_specs, merge


def programs(config: Config, mesh: Mesh) -> dict[str, Program]:
    """By name. In memory are policy and critic with their optimizers' states, the reference, the engine's weights and
    cache, and those of a judge of the policy's size where it is a checkpoint, all on one mesh. (A judge on a slice of
    its own is an address, and planned as what it is: `configs/serve_33b.py`.)

    Raises:
      ShardingError, ConfigError, ValueError: sizes that do not divide over the mesh, or a field that cannot be used.
    """
    if any(config.rl.critic_mesh.values()):
        raise ValueError("rl.critic_mesh: a plan is of one mesh; leave it out, and plan the critic's devices apart")
    rules = ShardingRules(mesh, "train")
    layout, held = layout_of(config, rules), config.rl.kl.weight or config.rl.kl.reward
    learners = {"policy": policy_of(config, rules)}
    if config.rl.baseline == "critic":
        learners["critic"] = critic_of(config, rules)
    engine = serving.programs(_as_served(config, mesh), mesh)
    states = {name: learner.abstract_state() for name, learner in learners.items()}
    weights, cache = _placed(engine["decode"], 0), _placed(engine["decode"], 1)
    others: dict[str, Any] = {}
    judged = config.get("reward_model")
    if held or (judged and judged.references == "reference"):
        kept = jnp.float32 if config.rl.reference.every else jnp.dtype(config.compute_dtype)
        others["reference"] = _in(kept, states["policy"].params)
    if judged and judged.judge == "checkpoint":
        others |= {"judge weights": weights, "judge cache": cache}

    def beside(*named: str) -> dict[str, Any]:
        """All that lies in memory but what is named."""
        every = {f"{name} optimizer": state.opt_state for name, state in states.items()}
        every |= {f"{name} parameters": state.params for name, state in states.items()}
        every |= {f"{name} frozen": state.frozen for name, state in states.items()}
        every |= others | {"engine weights": weights, "engine cache": cache}
        return {name: tree for name, tree in every.items() if name not in named}

    made = {}
    for name, learner in learners.items():
        state, batch = states[name], _abstract_batch(config, layout, name, rules)
        whole = _flops(config, layout)
        made[f"{name} gradients"] = _with_beside(
            learner.gradients,
            (state.params, state.frozen, _in(jnp.float32, state.params), batch),
            beside(f"{name} parameters", f"{name} frozen"),
            donate=(2,),
            groups={f"{name} parameters": (0,), "gradients": (2,), "batch": (3,)},
            tokens=layout.rows * layout.length,
            flops=3 * whole["decoder"] + whole["sound"],
            about=f"{layout.rows} rows of {layout.length:,} tokens",
        )
        made[f"{name} read"] = _with_beside(
            lambda params, frozen, batch, learner=learner: learner.reader(
                TrainState(params, frozen, None, jnp.zeros((), jnp.int32)), batch
            ),
            (state.params, state.frozen, batch),
            beside(f"{name} parameters", f"{name} frozen"),
            groups={f"{name} parameters": (0,), "batch": (2,)},
            tokens=layout.rows * layout.length,
            flops=whole["decoder"] + whole["sound"],
            about=f"{layout.rows} rows of {layout.length:,} tokens",
        )
    policy, graphdef = states["policy"], learners["policy"].graphdef
    made["hand over"] = dataclasses.replace(
        _with_beside(
            lambda params, frozen: nnx.to_pure_dict(
                nnx.state(merge(graphdef, params, frozen, dtype=jnp.dtype(config.compute_dtype)))
            ),
            (policy.params, policy.frozen),
            beside("policy parameters", "policy frozen", "engine weights"),
            groups={"policy parameters": (0,)},
            about="the policy's weights, from the trainer's layout to the engine's",
        ),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, weights),
    )
    for name in ("prefill", "decode"):
        program = engine[name]
        own = tuple(_placed(program, i) for i in range(len(program.abstract_args)))
        made[f"rollout: {name}"] = _with_beside(
            program.fn, own, beside("engine weights", "engine cache"), donate=program.donate,
            groups=dict(program.groups), tokens=program.tokens, flops=program.flops, about=program.about,
        )  # fmt: skip
    return made


def _as_served(config: Config, mesh: Mesh) -> Config:
    """The engine of a run in the words of inference.stage.programs, with pages for all rows at their longest."""
    rules = ShardingRules(mesh, "serve")
    lanes = rules.size(rules.split("batch"))
    return ml_collections.ConfigDict(
        {
            "model": config.model,
            "dtype": config.compute_dtype,
            "vocab_size": StepAudioConfig.preset(config.model).decoder.vocab_size,
            "batch_size": config.rl.engine.max_rows * lanes,
            "cache_length": config.rl.row_tokens,
            "page_size": 64,
            "burst": 16,
            "prefill_rows": lanes,
            "prompt_length": 2_048,
            "encode_chunks": lanes,
            "weights": None,
            "kv_cache": None,
        }
    )


def _placed(program: Program, position: int) -> Any:
    """An argument's shapes with where they lie."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        program.abstract_args[position],
        program.in_shardings[position],
    )


def _in(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), tree)


def _with_beside(fn: Any, arguments: tuple, beside: dict[str, Any], *, groups: dict, **rest: Any) -> Program:
    """A program of `fn` in whose memory other things lie, which it does not touch."""
    last = len(arguments)
    arguments = (*arguments, *beside.values())
    groups = groups | {name: (last + i,) for i, name in enumerate(beside)}
    return Program(
        fn=lambda *given: fn(*given[:last]),
        abstract_args=arguments,
        in_shardings=tuple(jax.tree.map(lambda leaf: leaf.sharding, argument) for argument in arguments),
        groups=groups,
        **rest,
    )


def _abstract_batch(config: Config, layout: Layout, of: str, rules: ShardingRules) -> Batch:
    """Shapes of a batch of rollouts, with what the objective reads."""
    rows, length = layout.rows, layout.length
    units = layout.sound_rows, layout.sound_samples // UNIT_SAMPLES

    def array(kind: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)

    tokens, numbers, sound = array(jnp.int32, rows, length), array(jnp.float32, rows, length), array(jnp.int32, *units)
    names = ["weights", "old_values", "returns"] if of == "critic" else ["weights", "old_log_probs", "advantages"]
    if of == "policy" and config.rl.kl.weight:
        names += ["reference", "kl_weight"]
    audio = AudioInput(array(jnp.float32, layout.sound_rows, layout.sound_samples), sound, sound, tokens)
    mask = array(jnp.bool_, rows, length)
    extra: Any = dict.fromkeys(names, numbers)
    groups = tokens if layout.share_prompts else None
    batch = Batch(tokens, tokens, tokens, mask, tokens, audio, None, None, extra, groups)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        batch,
        rules.shardings(batch_specs(rules, batch)),
    )


def _flops(config: Config, layout: Layout) -> dict[str, float]:
    """Of a forward pass over a batch, rows counted as one segment, sound as chunks of the longest length."""
    sizes = StepAudioConfig.preset(config.model)
    rows, length = layout.rows, layout.length
    chunks = layout.sound_rows * layout.sound_samples / CHUNK_SAMPLES
    return {
        "decoder": decoder_flops(sizes.decoder, rows * length, rows * causal_pairs(length)),
        "sound": encoder_flops(sizes.audio, chunks, CHUNK_SAMPLES) + adaptor_flops(sizes.audio, chunks, CHUNK_SAMPLES),
    }
