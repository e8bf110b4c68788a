"""Models to checkpoint folders and back.

config.json      the release's nested shape (config.StepAudioConfig.to_hf)
tokenizer.json   a Hugging Face tokenizer
params/          Orbax arrays (layout.py)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from stepaudio_jax.checkpoints.layout import (
    PARAMS,
    CheckpointError,
    first_line,
    parameter_folders,
    publish,
    refuse_unfinished,
    save_args,
    unfinished,
)
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inputs import InputError, regular_file
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import Tokenizer, TokenizerError

SHIPPED = ("tiny",)

Placement = Callable[[tuple[str | None, ...]], jax.sharding.Sharding]
"""Where a parameter goes, from the logical names of its axes."""


def resolve(name: epath.PathLike) -> epath.Path:
    """The folder of a checkpoint: a path, or the name of one that comes with the package ("tiny")."""
    if str(name) in SHIPPED:
        return epath.Path(str(resources.files("stepaudio_jax") / "assets" / str(name)))
    return epath.Path(name)


def locate(name: epath.PathLike) -> epath.Path:
    """The folder of a checkpoint that is there and whole, by path or shipped name.

    Raises:
      CheckpointError: no such folder, or one that is still being written, with how much of it is missing.
    """
    path = resolve(name)
    refuse_unfinished(path)
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint; expected a folder with config.json, tokenizer.json and {PARAMS}/, "
            f"or the name of one that comes with the package ({', '.join(SHIPPED)})"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a folder with config.json, tokenizer.json and {PARAMS}/, found a file")
    return path


def save(
    path: epath.PathLike,
    model: StepAudio,
    tokenizer_json: str,
    *,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint folder. It appears under its name only when it is whole.

    Over several processes all call this, and each writes what its devices hold; it returns when the folder is whole.

    Args:
      generation: defaults for sampling, in the keys of a Hugging Face generation_config.json.

    Raises:
      CheckpointError: the folder exists and `overwrite` is not set.
    """
    files = {"config.json": json.dumps(model.config.to_hf(), indent=2) + "\n", "tokenizer.json": tokenizer_json}
    if generation is not None:
        files["generation_config.json"] = json.dumps(dict(generation), indent=2) + "\n"
    write(path, nnx.state(model, nnx.Param), files, overwrite=overwrite)


def write(path: epath.PathLike, variables: nnx.State, files: Mapping[str, str], *, overwrite: bool) -> None:
    """Writes parameters and texts as a folder, as `save` says."""
    path = epath.Path(path).resolve()
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already; choose another name, or allow overwriting")
    folder = unfinished(path)
    wait_for_all(f"{path} may be written")  # none still looks whether it exists
    if jax.process_index() == 0:
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    wait_for_all(f"{path} is begun")
    params = nnx.to_pure_dict(variables)
    axes = logical_axes(variables)
    layout = jax.tree_util.tree_map_with_path(lambda key, _: save_args(axes[_name(key)][:1] == ("layers",)), params)
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / PARAMS, params, save_args=layout)
    if jax.process_index() == 0:
        if (marker := folder / PARAMS / "commit_success.txt").exists():
            marker.write_text("Checkpoint commit was successful\n")  # without the path, which is about to change
        publish(path)
    wait_for_all(f"{path} is whole")


def wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def load(
    path: epath.PathLike, *, dtype: Any = None, placement: Placement | None = None, yarn_factor: float | None = None
) -> tuple[StepAudio, Tokenizer]:
    """Reads a checkpoint folder, or one that is shipped, by name.

    Args:
      dtype: of the parameters in memory; None keeps what the file holds.
      placement: where each parameter goes; None puts all on the first device. A process reads only the chunks that
        its own devices need.
      yarn_factor: so many times the positions, see `StepAudioConfig.with_yarn`.

    Raises:
      CheckpointError: no such folder, or arrays missing, of another shape or unreadable.
      ConfigError, TokenizerError: what the message says of config.json or tokenizer.json.
    """
    path = locate(path)
    config = StepAudioConfig.read(path, yarn_factor=yarn_factor)
    tokenizer = load_tokenizer(path, config)
    model = nnx.eval_shape(lambda: StepAudio(config, rngs=nnx.Rngs(0)))
    nnx.update(model, read(path, nnx.state(model, nnx.Param), dtype=dtype, placement=placement))
    return model, tokenizer


def load_tokenizer(path: epath.Path, config: StepAudioConfig) -> Tokenizer:
    """The tokenizer of a folder, for a model of this config.

    Raises:
      TokenizerError: missing, malformed, or larger than the embedding.
    """
    tokenizer = read_tokenizer(path)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise TokenizerError(
            f"{path / 'tokenizer.json'}: has {tokenizer.vocab_size} entries, "
            f"the model's embedding only {config.decoder.vocab_size}"
        )
    return tokenizer


def read_tokenizer(path: epath.Path) -> Tokenizer:
    """The tokenizer of a folder.

    Raises:
      TokenizerError: missing, malformed, or no ordinary file of the folder (inputs/files.py).
    """
    file = path / "tokenizer.json"
    try:
        if file.exists():  # what is missing has a message of its own
            regular_file(file)
    except InputError as error:
        raise TokenizerError(str(error)) from None
    return Tokenizer.load(path)


def read(
    path: epath.Path, variables: nnx.State, *, dtype: Any = None, placement: Placement | None = None
) -> dict[str, Any]:
    """The arrays of a checkpoint folder for these parameters (of which only shapes and axes are looked at), as a plain
    tree, as `load` says."""
    abstract = nnx.to_pure_dict(variables)
    shardings = {name: (placement or _first_device)(axes) for name, axes in logical_axes(variables).items()}
    folders = parameter_folders(path)
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = {folder: checkpointer.metadata(folder.resolve()).item_metadata.tree for folder in folders}
            together = {name: tree for part in stored.values() for name, tree in part.items()}
            target = _match(abstract, together, shardings, folders[0], dtype)
            restored: dict[str, Any] = {}
            for folder, part in stored.items():
                restored |= checkpointer.restore(folder.resolve(), {name: target[name] for name in part})
            return restored
        except CheckpointError:
            raise
        except Exception as error:  # tensorstore and Orbax raise many kinds for a damaged file
            raise CheckpointError(f"{folders[0]}: cannot be read ({first_line(error)})") from error


def _first_device(_: tuple[str | None, ...]) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _match(
    abstract: Any, stored: Any, shardings: Mapping[str, jax.sharding.Sharding], folder: epath.Path, dtype: Any
) -> Any:
    """What to restore: our tree with the stored dtypes, after checking that names and shapes agree."""
    ours, theirs = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (abstract, stored))
    ours, theirs = ({_name(k): v for k, v in tree.items()} for tree in (ours, theirs))
    problems = [f"missing {name}" for name in ours if name not in theirs]
    problems += [f"unknown {name}" for name in theirs if name not in ours]
    problems += [
        f"{name} has shape {tuple(theirs[name].shape)}, the config asks for {ours[name].shape}"
        for name in ours
        if name in theirs and tuple(theirs[name].shape) != ours[name].shape
    ]
    if problems:
        raise CheckpointError(f"{folder}: {len(problems)} problems: " + "; ".join(problems[:8]))

    def target(key, leaf):
        name = _name(key)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype or theirs[name].dtype), sharding=shardings[name])

    return jax.tree_util.tree_map_with_path(target, abstract)


def logical_axes(variables: nnx.State) -> dict[str, tuple[str | None, ...]]:
    """The names of each parameter's axes, by its module path."""
    return {
        ".".join(map(str, key)): variable.get_metadata("logical_axes") for key, variable in nnx.to_flat_state(variables)
    }


def _name(key: Any) -> str:
    return ".".join(str(getattr(entry, "key", entry)) for entry in key)


class quiet:
    """Orbax logs each file at INFO and warns of things that do not concern the reader of one folder."""

    def __enter__(self):
        self._logger = logging.getLogger("absl")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_):
        self._logger.setLevel(self._level)
