"""The model a run begins with: random weights of a preset's sizes, or those of a checkpoint that has them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from stepaudio_jax import checkpoints
from stepaudio_jax.config import PRESETS, ConfigError, StepAudioConfig
from stepaudio_jax.models import LoraConfig, StepAudio, add_lora
from stepaudio_jax.models.layers import logical_axes
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.training.configs import Config

ANY = ("text_config.max_position_embeddings",)
"""Sizes that may differ: how far a checkpoint was trained to read changes no weight and no number."""


def check_init(config: Config) -> None:
    """Looks only at the config.json of the checkpoint `config.init`, if there is one.

    Raises:
      ConfigError: a model of other sizes than those of `config.model`, each of which is named.
      CheckpointError: no such checkpoint.
    """
    if not config.init:
        return
    file = checkpoints.locate(config.init) / "config.json"
    found, expected = _sizes(StepAudioConfig.read(file)), _sizes(StepAudioConfig.preset(config.model))
    if not (differ := [name for name in expected if found[name] != expected[name]]):
        return
    fitting = [name for name in PRESETS if _sizes(PRESETS[name]) == found]
    told = "; ".join(f"{name}: expected {expected[name]}, found {found[name]}" for name in differ)
    other = f"set config.model={fitting[0]}" if fitting else "give its sizes a preset in stepaudio_jax/config.py"
    raise ConfigError(
        f'config.init: {file} is not of the sizes of config.model "{config.model}": {told}. '
        f'Name a checkpoint of "{config.model}", or {other}'
    )


def _sizes(config: StepAudioConfig) -> dict[str, object]:
    """Every field of both parts, but those of `ANY`."""
    parts = {"text_config": config.decoder, "audio_encoder_config": config.audio}
    fields = {f"{part}.{name}": value for part, of in parts.items() for name, value in vars(of).items()}
    return {name: value for name, value in fields.items() if name not in ANY}


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
