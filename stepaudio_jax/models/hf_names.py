"""The two-way map between the released state-dict names and our parameters (MODEL.md §2).

One entry per released tensor: where it lives here, at which place of a layer stack, and how its axes are ordered.
Converters, parity tests and exporters all read this one table.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig, StepAudioConfig
from stepaudio_jax.models.step_audio import StepAudio

ORDER = {"same": None, "linear": (1, 0), "conv": (2, 1, 0)}
"""Axis permutation from the release to ours, its own inverse: torch stores [out, in] and [out, in, width]."""


MAX_SUGGESTIONS, MAX_NAME = 20, 200


class Place(NamedTuple):
    """Where a released tensor lives: attribute path from the model, index in the layer stack, axis order."""

    path: tuple[str, ...]
    layer: int | None
    order: str

    def from_hf(self, array: np.ndarray) -> np.ndarray:
        return array if ORDER[self.order] is None else array.transpose(ORDER[self.order])

    to_hf = from_hf


_ENCODER_LAYER = {
    "attn_ln.weight": ("attn_ln.scale", "same"),
    "attn_ln.bias": ("attn_ln.bias", "same"),
    "attn.query.weight": ("query.kernel", "linear"),
    "attn.query.bias": ("query.bias", "same"),
    "attn.key.weight": ("key.kernel", "linear"),
    "attn.value.weight": ("value.kernel", "linear"),
    "attn.value.bias": ("value.bias", "same"),
    "attn.out.weight": ("out.kernel", "linear"),
    "attn.out.bias": ("out.bias", "same"),
    "mlp_ln.weight": ("mlp_ln.scale", "same"),
    "mlp_ln.bias": ("mlp_ln.bias", "same"),
    "mlp.0.weight": ("mlp_up.kernel", "linear"),
    "mlp.0.bias": ("mlp_up.bias", "same"),
    "mlp.2.weight": ("mlp_down.kernel", "linear"),
    "mlp.2.bias": ("mlp_down.bias", "same"),
}
_AUDIO = {
    "encoder.conv1.weight": ("encoder.conv1.kernel", "conv"),
    "encoder.conv1.bias": ("encoder.conv1.bias", "same"),
    "encoder.conv2.weight": ("encoder.conv2.kernel", "conv"),
    "encoder.conv2.bias": ("encoder.conv2.bias", "same"),
    "encoder.positional_embedding.weight": ("encoder.positional_embedding", "same"),
    "encoder.after_norm.weight": ("encoder.after_norm.scale", "same"),
    "encoder.after_norm.bias": ("encoder.after_norm.bias", "same"),
    "adapter.conv.weight": ("adaptor.conv.kernel", "conv"),
    "adapter.conv.bias": ("adaptor.conv.bias", "same"),
    "adapter.linear1.weight": ("adaptor.linear1.kernel", "linear"),
    "adapter.linear1.bias": ("adaptor.linear1.bias", "same"),
    "adapter.linear2.weight": ("adaptor.linear2.kernel", "linear"),
    "adapter.linear2.bias": ("adaptor.linear2.bias", "same"),
}
_DECODER_LAYER = {
    "input_layernorm.weight": ("input_layernorm.scale", "same"),
    "self_attn.q_proj.weight": ("q_proj.kernel", "linear"),
    "self_attn.q_proj.bias": ("q_proj.bias", "same"),
    "self_attn.k_proj.weight": ("k_proj.kernel", "linear"),
    "self_attn.k_proj.bias": ("k_proj.bias", "same"),
    "self_attn.v_proj.weight": ("v_proj.kernel", "linear"),
    "self_attn.v_proj.bias": ("v_proj.bias", "same"),
    "self_attn.o_proj.weight": ("o_proj.kernel", "linear"),
    "post_attention_layernorm.weight": ("post_attention_layernorm.scale", "same"),
    "mlp.gate_proj.weight": ("gate_proj.kernel", "linear"),
    "mlp.up_proj.weight": ("up_proj.kernel", "linear"),
    "mlp.down_proj.weight": ("down_proj.kernel", "linear"),
}
_DECODER = {
    "model.embed_tokens.weight": ("decoder.embed_tokens", "same"),
    "model.norm.weight": ("decoder.norm.scale", "same"),
}


def tensor_map(config: StepAudioConfig) -> dict[str, Place]:
    """Every released tensor name of this config, in the release's order, with its place here."""
    places: dict[str, Place] = {}

    def add(name: str, ours: str, order: str, layer: int | None = None):
        places[name] = Place(tuple(ours.split(".")), layer, order)

    if config.audio_encoder_config is not None:
        for name, (ours, order) in _AUDIO.items():
            add(name, ours, order)
        for i in range(config.audio.n_audio_layer):
            for name, (ours, order) in _ENCODER_LAYER.items():
                add(f"encoder.blocks.{i}.{name}", f"encoder.layers.{ours}", order, i)
    if config.text_config is not None:
        for name, (ours, order) in _DECODER.items():
            add(name, ours, order)
        for i in range(config.decoder.num_hidden_layers):
            for name, (ours, order) in _DECODER_LAYER.items():
                add(f"model.layers.{i}.{name}", f"decoder.layers.{ours}", order, i)
        if not config.decoder.tie_word_embeddings:
            add("lm_head.weight", "decoder.lm_head", "same")
    return places


@functools.lru_cache(maxsize=8)  # asked for several times on the way of a conversion
def released_shapes(config: StepAudioConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of every released tensor of this config, in the release's axis order."""
    whole = config  # a part gets any other part beside it, whose names are not asked for
    if config.audio_encoder_config is None:
        whole = dataclasses.replace(config, audio_encoder_config=AudioEncoderConfig(llm_dim=config.decoder.hidden_size))
    elif config.text_config is None:
        whole = dataclasses.replace(config, text_config=DecoderConfig(hidden_size=config.audio.llm_dim))
    model = nnx.eval_shape(lambda: StepAudio(whole, rngs=nnx.Rngs(0)))
    shapes = {}
    for name, place in tensor_map(config).items():
        shape = parameter(model, place.path).shape
        shape = shape if place.layer is None else shape[1:]
        order = ORDER[place.order] or range(len(shape))
        shapes[name] = tuple(shape[axis] for axis in order)
    return types.MappingProxyType(shapes)


def mismatches(config: StepAudioConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps tensors of these names and shapes from being this config's: missing, unknown, of another shape."""
    expected = released_shapes(config)
    problems = [f"missing {name}" for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    for number, name in enumerate(unknown):
        near = []
        if number < MAX_SUGGESTIONS and len(name) < MAX_NAME:  # the search takes long, and a file may name millions
            near = difflib.get_close_matches(name, expected, 1)
        problems.append(f"unknown {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    for name, shape in shapes.items():
        if shape != expected.get(name, shape):
            problems.append(f"{name}: expected shape {expected[name]}, found {shape}")
    return problems


def parameter(model: StepAudio, path: tuple[str, ...]) -> nnx.Param:
    return functools.reduce(getattr, path, model)


def load_state(model: StepAudio, tensors: Mapping[str, np.ndarray]) -> None:
    """Puts released tensors into the model (which may be abstract, from `nnx.eval_shape`), in the model's own dtype.

    Raises:
      ValueError: names that are missing, unknown (with the nearest known one), or of another shape; all at once.
    """
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    if problems := mismatches(model.config, {name: array.shape for name, array in arrays.items()}):
        raise ValueError(f"{len(problems)} problems in the weights: " + "; ".join(problems))
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name, place in tensor_map(model.config).items():
        stacks.setdefault(place.path, []).append(place.from_hf(arrays[name]))
    for path, layers in stacks.items():
        target = parameter(model, path)
        whole = np.stack(layers) if target.ndim > layers[0].ndim else layers[0]
        target.set_value(jnp.asarray(whole, target.dtype))


def save_state(model: StepAudio) -> dict[str, np.ndarray]:
    """The model's weights under their released names."""
    tensors = {}
    for name, place in tensor_map(model.config).items():
        array = np.asarray(parameter(model, place.path)[...])
        tensors[name] = place.to_hf(array if place.layer is None else array[place.layer])
    return tensors
