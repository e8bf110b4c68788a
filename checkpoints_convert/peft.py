"""Adapters to a PEFT folder and back: adapter_config.json and adapter_model.safetensors, as PEFT names and shapes them.

PEFT calls the adapters of model.layers.0.self_attn.q_proj, in torch's [out, in],
base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [rank, in] and ….lora_B.weight [out, rank].
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from checkpoints_convert.peft_config import CONFIG, WEIGHTS, read_config
from checkpoints_convert.safetensors_files import Reader, Tensor, Writer
from checkpoints_convert.sources import ConversionError
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints.layout import PARAMS, open_arrays, publish, unfinished
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inputs import InputError, read_object, read_text
from stepaudio_jax.models import LoraConfig
from stepaudio_jax.models.hf_names import Place, parameter, tensor_map
from stepaudio_jax.models.lora import adapted_shapes

PREFIX = "base_model.model."


def linear_modules(config: StepAudioConfig) -> dict[str, Place]:
    """The released name of every linear layer, with the place of its kernel."""
    return {
        name.removesuffix(".weight"): place
        for name, place in tensor_map(config).items()
        if place.order == "linear" and place.path[-1] == "kernel"
    }


def to_peft(src: epath.PathLike, dst: epath.PathLike, *, base_model: str | None = None) -> None:
    """Writes a checkpoint of adapters as a PEFT folder, in float32.

    Args:
      base_model: the hub id or folder of the base in Hugging Face's layout; by default the base's own path.

    Raises:
      ConversionError: src is no checkpoint of adapters, or holds whole modules; dst exists.
    """
    folder, dst = checkpoints.locate(src), epath.Path(dst)
    if not checkpoints.is_adapters(folder):
        raise ConversionError(f"{folder}: holds whole weights, no adapters; to-hf converts them")
    _refuse_existing(dst)
    about = checkpoints.read_about(folder)
    if about.modules:
        raise ConversionError(
            f"{folder}: besides adapters it holds all of {', '.join(about.modules)}, which PEFT adapters cannot; "
            "to-hf writes the merged weights"
        )
    arrays = open_arrays(folder / PARAMS)
    tensors, targets = {}, set()
    for module, place in linear_modules(StepAudioConfig.read(folder)).items():
        for letter, name in (("a", "lora_A"), ("b", "lora_B")):
            if (array := arrays.get(".".join((*place.path[:-1], "lora", letter)))) is None:
                continue
            array = array if place.layer is None else array[place.layer]
            tensors[f"{PREFIX}{module}.{name}.weight"] = np.ascontiguousarray(array.read().result().T)
            *_, outer, inner = module.split(".")
            targets.add(f"{outer}.{inner}" if inner.isdigit() else inner)  # q_proj, mlp.0
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or about.base,
        "r": about.lora.rank,
        "lora_alpha": about.lora.alpha,
        "use_rslora": about.lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(targets),
        "inference_mode": True,
    }
    begun = unfinished(dst)
    begun.mkdir(parents=True, exist_ok=True)
    (begun / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    writer = Writer(Path(begun / WEIGHTS), {name: Tensor(array.dtype, array.shape) for name, array in tensors.items()})
    for name, array in tensors.items():
        writer.write(name, 0, array)
    writer.sync()
    writer.close()
    publish(dst)


def from_peft(src: epath.PathLike, dst: epath.PathLike, *, base: epath.PathLike) -> None:
    """Reads a PEFT folder as adapters of one of our checkpoints, and writes them as a checkpoint.

    Args:
      base: a checkpoint of the weights that the adapters were trained beside.

    Raises:
      ConversionError: everything that our adapters cannot express, or that does not fit the base.
    """
    src, dst, whole = epath.Path(src), epath.Path(dst), checkpoints.locate(base)
    _refuse_existing(dst)
    config = StepAudioConfig.read(whole)
    values = read_config(src / CONFIG)
    matrices = _read_matrices(src / WEIGHTS, linear_modules(config))
    paths = sorted({path for path, _, _ in matrices})
    lora = LoraConfig(
        rank=values["r"],
        alpha=values["lora_alpha"],
        targets=tuple(path[-1] for path in paths),
        modules=tuple(sorted({path[0] for path in paths})),
        rslora=bool(values.get("use_rslora")),
    )
    model, problems = adapted_shapes(config, lora), []
    for path in paths:
        for letter in "ab":
            target = parameter(model, (*path, "lora", letter))
            layers = range(target.shape[0]) if target.ndim == 3 else [None]
            found: list[Any] = [matrices.get((path, letter, layer)) for layer in layers]
            shape = target.shape[-2:]
            if wrong := [layer for layer, x in zip(layers, found, strict=True) if x is None or x.shape != shape]:
                what = f"{'.'.join(path)}: no lora_{letter.upper()} of shape {shape[::-1]} in layer {wrong[0]}"
                problems.append(f"{src / WEIGHTS}: {what}")
            else:
                target.set_value(jnp.asarray(np.stack(found) if target.ndim == 3 else found[0], jnp.float32))
    if problems:
        raise ConversionError(*problems)
    generation = whole / "generation_config.json"
    checkpoints.save_adapters(
        dst,
        model,
        lora,
        read_text(whole / "tokenizer.json"),
        base=base,
        generation=read_object(generation) if generation.exists() else None,
    )


def _refuse_existing(dst: epath.Path) -> None:
    if dst.exists():
        raise ConversionError(f"{dst}: exists already; choose another name")


def _read_matrices(
    path: epath.Path, modules: Mapping[str, Place]
) -> dict[tuple[tuple[str, ...], str, int | None], np.ndarray]:
    """(our path of the layer, "a" or "b", index in the stack) → the matrix as ours lies."""
    if not path.exists():
        raise ConversionError(f"{path}: no such file; only safetensors are read, never a pickle (adapter_model.bin)")
    try:
        reader = Reader(Path(path))
    except InputError as error:
        raise ConversionError(str(error)) from None
    matrices, unknown = {}, []
    for name, tensor in reader.tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if match is None or match[1] not in modules:
            unknown.append(f"{path}: {name} is no adapter of a linear layer of this model")
            continue
        place = modules[match[1]]
        matrices[place.path[:-1], match[2].lower(), place.layer] = reader.read(name, 0, tensor.rows).T
    if unknown or not matrices:
        raise ConversionError(*(unknown or [f"{path}: holds no adapters"]))
    return matrices
