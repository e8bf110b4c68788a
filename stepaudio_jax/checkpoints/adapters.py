"""Checkpoints of adapters (models/lora.py): what was trained, beside the name of the checkpoint that it changes.

lora.json        the adapters' sizes, modules trained as a whole besides, the base and a fingerprint of its weights
params/          Orbax arrays of the adapters (decoder.layers.q_proj.lora.a) and of those modules
config.json, tokenizer.json, …     as in any checkpoint

`load` reads every kind of checkpoint; adapters come merged into their base.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from stepaudio_jax.checkpoints import checkpoint
from stepaudio_jax.checkpoints.checkpoint import Placement
from stepaudio_jax.checkpoints.layout import PARAMS, CheckpointError, open_arrays
from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.inputs import read_object
from stepaudio_jax.models import LoraConfig, StepAudio, merge_lora
from stepaudio_jax.models.lora import adapted_shapes, is_lora
from stepaudio_jax.text import Tokenizer

LORA = "lora.json"
MAX_BASES = 16
"""Adapters of adapters of …, down to whole weights."""
CORNER = 64
"""Rows and columns of each array's first and last layer that the fingerprint reads."""


class Adapters(NamedTuple):
    """What lora.json says.

    Attributes:
      modules: those whose own parameters were trained as well.
      base: a path, or the name of a shipped checkpoint.
      fingerprint: of the base's weights (`fingerprint`).
    """

    lora: LoraConfig
    modules: tuple[str, ...]
    base: str
    fingerprint: str


def save_adapters(
    path: epath.PathLike,
    model: StepAudio,
    lora: LoraConfig,
    tokenizer_json: str,
    *,
    base: epath.PathLike,
    modules: Sequence[str] = (),
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the adapters of a model, and the parameters of `modules`, as `save` writes a whole model.

    Raises:
      CheckpointError: the folder exists and `overwrite` is not set, or there is no such base.
    """
    files = {
        LORA: describe(lora, base, modules),
        "config.json": json.dumps(model.config.to_hf(), indent=2) + "\n",
        "tokenizer.json": tokenizer_json,
    }
    if generation is not None:
        files["generation_config.json"] = json.dumps(dict(generation), indent=2) + "\n"
    checkpoint.write(path, _trained(model, modules), files, overwrite=overwrite)


def describe(lora: LoraConfig, base: epath.PathLike, modules: Sequence[str]) -> str:
    """The text of lora.json. Raises CheckpointError: there is no such base."""
    where = checkpoint.locate(base)
    about = {
        "lora": dataclasses.asdict(lora),
        "modules": list(modules),
        "base": str(base) if str(base) in checkpoint.SHIPPED else str(where.resolve()),
        "fingerprint": fingerprint(where),
    }
    return json.dumps(about, indent=2) + "\n"


def is_adapters(path: epath.Path) -> bool:
    return (path / LORA).exists()


def read_about(path: epath.Path) -> Adapters:
    """What a folder of adapters says of itself, after a look at its base.

    Raises:
      CheckpointError: lora.json is malformed, or the base is missing, has other weights than it had, or is adapters of
        these adapters.
    """
    file = path / LORA
    found = _described(file)
    below, above = checkpoint.resolve(found.base), [path.resolve()]
    while below.exists() and is_adapters(below):
        if below.resolve() in above or len(above) == MAX_BASES:
            raise CheckpointError(
                f"{file}: below its base {found.base} are adapters again, in a circle or more than {MAX_BASES} deep, "
                'and no whole weights; name those as the "base"'
            )
        above.append(below.resolve())
        below = checkpoint.resolve(_described(below / LORA).base)
    base = checkpoint.resolve(found.base)
    if not base.exists():
        raise CheckpointError(f'{file}: its base {base} is not there; put it back, or name its new place in "base"')
    if (now := fingerprint(base)) != found.fingerprint:
        raise CheckpointError(
            f"{file}: its base {base} has other weights than the adapters were trained beside "
            f"(fingerprint {now}, expected {found.fingerprint})"
        )
    return found


def _described(file: epath.Path) -> Adapters:
    """What a lora.json says. Raises CheckpointError: it is malformed."""
    try:
        about = read_object(file)
        modules, base, mark = about["modules"], about["base"], about["fingerprint"]
        if not isinstance(modules, list) or not all(isinstance(text, str) for text in (*modules, base, mark)):
            raise ValueError("expected modules as a list of names, base and fingerprint as texts")
        return Adapters(LoraConfig(**about["lora"]), tuple(modules), base, mark)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a description of adapters ({error})") from None


def fingerprint(path: epath.Path) -> str:
    """A hash of a corner of every array: the same for a copy or a repeated conversion, not after training."""
    digest = hashlib.sha256()
    for name, array in sorted(open_arrays(path / PARAMS).items()):
        layers = (slice(None),) if name.split(".")[1:2] != ["layers"] else ([0, array.shape[0] - 1],)
        corner = array[layers][tuple(slice(0, min(CORNER, size)) for size in array[layers].shape)]
        digest.update(f"{name} {array.shape}".encode() + np.asarray(corner.read().result(), np.float32).tobytes())
    return digest.hexdigest()[:32]


def read_config(path: epath.PathLike, *, yarn_factor: float | None = None) -> StepAudioConfig:
    """The config of a checkpoint, or of the base of adapters, without its arrays. Raises as `load`."""
    path = checkpoint.locate(path)
    if is_adapters(path):
        return read_config(read_about(path).base, yarn_factor=yarn_factor)
    return StepAudioConfig.read(path, yarn_factor=yarn_factor)


def load_adapters(
    path: epath.PathLike, *, dtype: Any = None, placement: Placement | None = None, yarn_factor: float | None = None
) -> tuple[StepAudio, Tokenizer, Adapters]:
    """The base with the adapters beside its matrices, not merged.

    Args:
      dtype: of the base and of modules trained as a whole; adapters keep the type they are stored in.
      yarn_factor: so many times the positions, see `StepAudioConfig.with_yarn`.

    Raises:
      CheckpointError: what is wrong with the adapters or their base.
    """
    path = checkpoint.locate(path)
    about = read_about(path)
    base, _ = load(about.base, dtype=dtype, placement=placement, yarn_factor=yarn_factor)
    tokenizer = checkpoint.load_tokenizer(path, base.config)
    abstract = adapted_shapes(base.config, about.lora)
    trained = checkpoint.read(path, _trained(abstract, about.modules), placement=placement)
    stored: dict[Any, Any] = flatten_dict(trained)
    whole: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(nnx.state(base, nnx.Param)))
    stored = {name: array if is_lora(name) else array.astype(whole[name].dtype) for name, array in stored.items()}
    return nnx.merge(nnx.graphdef(abstract), unflatten_dict(whole | stored)), tokenizer, about


def load(
    path: epath.PathLike, *, dtype: Any = None, placement: Placement | None = None, yarn_factor: float | None = None
) -> tuple[StepAudio, Tokenizer]:
    """Reads a checkpoint folder, or one that is shipped, by name. Adapters come merged into their base.

    Args:
      dtype: of the parameters in memory; None keeps what the file holds.
      placement: where each parameter goes; None puts all on the first device. A process reads only the chunks that
        its own devices need.
      yarn_factor: so many times the positions, see `StepAudioConfig.with_yarn`.

    Raises:
      CheckpointError: no such folder, or arrays missing, of another shape or unreadable; adapters without their base.
      ConfigError, TokenizerError: what the message says of config.json or tokenizer.json.
    """
    path = checkpoint.locate(path)
    if not is_adapters(path):
        return checkpoint.load(path, dtype=dtype, placement=placement, yarn_factor=yarn_factor)
    model, tokenizer, _ = load_adapters(path, dtype=dtype, placement=placement, yarn_factor=yarn_factor)
    merge_lora(model)
    return model, tokenizer


def _trained(model: StepAudio, modules: Sequence[str]) -> nnx.State:
    """The adapters' parameters and those of whole modules.

    Raises:
      ConfigError: there are none.
    """
    flat = {path: leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    kept = {path: leaf for path, leaf in flat.items() if is_lora(path) or path[0] in modules}
    if not any(map(is_lora, kept)):
        raise ConfigError("lora: the model has no adapters")
    return nnx.from_flat_state(kept)
