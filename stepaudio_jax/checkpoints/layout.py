"""How a checkpoint's arrays lie on disk, and access to them piece by piece, without a model in memory.

params/ is what Orbax writes: one zarr array per parameter, named by module path (decoder.layers.q_proj.kernel), all
in one OCDBT key-value store. Two rules make it fit every reader, and trainer and converter keep both:

  * a stack of layers is chunked with length 1 along its layer axis, so that one layer can be written or read alone;
  * a chunk holds at most 1 MiB, so that a process reads little beyond its own shards.

A folder that is being written is named `….unfinished` and is renamed when it is whole. A writer that can go on where
it was stopped keeps `progress.json` in it. Object stores (gs://) cannot rename: there the folder has its own name from
the start, and is refused for as long as it holds `progress.json`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from stepaudio_jax.inputs import InputError, is_remote, read_object, regular_file

PARAMS = "params"
PROGRESS = "progress.json"
RUN, FROZEN = "run.json", "frozen"
"""What makes a folder a trainer's checkpoint (run.py), and where beside it the parameters are that were not trained."""
CHUNK_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 40
"""Of a file of the store that a link leads to."""
DATA_FILE_BYTES = 8 << 20
"""Of the store's files, as we write them: a commit writes its files in parallel, so many beat a large one."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and what is wrong with it."""


class ArraySpec(NamedTuple):
    """An array on disk. `stacked`: its first axis counts layers."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool


def unfinished(path: epath.Path) -> epath.Path:
    """The name of a checkpoint folder until it is whole."""
    return path if is_remote(path) else path.parent / f"{path.name}.unfinished"


def publish(path: epath.Path) -> None:
    """Gives a folder that is whole its name, in place of an older one."""
    if is_remote(path):
        return
    if path.exists():
        path.rmtree()
    unfinished(path).rename(path)


def chunk_shape(spec: ArraySpec) -> tuple[int, ...]:
    """One layer, its axes halved in turns until it holds at most CHUNK_BYTES.

    In turns, because any axis may be the one that a mesh divides between processes: each then skips what is not its.
    """
    shape = list(spec.shape)
    if spec.stacked:
        shape[0] = 1
    halved = [0] * len(shape)
    while math.prod(shape) * spec.dtype.itemsize > CHUNK_BYTES:
        axis = min((axis for axis, size in enumerate(shape) if size > 1), key=lambda axis: (halved[axis], -shape[axis]))
        shape[axis] = -(-shape[axis] // 2)
        halved[axis] += 1
    return tuple(shape)


def save_args(stacked: bool) -> ocp.SaveArgs:
    """The same rules in Orbax's terms."""
    return ocp.SaveArgs(shard_axes=(0,) if stacked else (), chunk_byte_size=CHUNK_BYTES)


def create_arrays(params: epath.Path, specs: Mapping[str, ArraySpec]) -> dict[str, ts.TensorStore]:
    """Opens arrays for writing, those that exist with what they hold, and writes Orbax's description of them.

    A write that has been waited for outlives the process; on a local disk it outlives the machine after `os.sync`.
    """
    context = _context(file_io_sync=False)  # one sync now and then instead of one for each of thousands of files
    opened = {}
    for name, spec in specs.items():
        metadata = {
            "shape": spec.shape,
            "chunks": chunk_shape(spec),
            "dtype": spec.dtype.name if spec.dtype.name == "bfloat16" else spec.dtype.str,
            "compressor": None,  # weights hardly compress, and not at all as fast as a disk writes
            "fill_value": None,
            "dimension_separator": ".",
            "order": "C",
        }
        request = {**_array(params, name), "metadata": metadata, "create": True, "open": True}
        request["kvstore"]["target_data_file_size"] = DATA_FILE_BYTES
        opened[name] = ts.open(request, context=context)
    arrays = {name: future.result() for name, future in opened.items()}
    (params / "_METADATA").write_text(json.dumps(_orbax_metadata(specs)))
    return arrays


def parameter_folders(path: epath.Path) -> list[epath.Path]:
    """Where the arrays of a checkpoint are: its params/, and of a trainer's with frozen modules the folder of those.

    Raises:
      CheckpointError: no such folder.
    """
    folders = [path / PARAMS]
    try:
        if (path / RUN).exists() and read_object(path / RUN)[FROZEN]:
            folders.append(path.parent / FROZEN)
    except (InputError, KeyError) as error:
        raise CheckpointError(f"{path / RUN}: not the description of a trainer's checkpoint ({error})") from None
    for folder in folders:
        if not folder.exists():
            raise CheckpointError(f"{folder}: no such folder; the checkpoint has no weights")
        refuse_special_files(folder)
    return folders


def refuse_special_files(folder: epath.Path) -> None:
    """Looks at every file below a folder of arrays: the store would wait for a named pipe, and follow any link.

    Raises:
      CheckpointError: one that is no ordinary file of its folder (inputs/files.py).
    """
    if is_remote(folder):
        return
    if os.path.islink(folder):
        raise CheckpointError(f"{folder}: a link; put the folder itself there")
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):  # of thousands of files, few need a closer look
                    try:
                        regular_file(entry.path, most=MAX_FILE_BYTES)
                    except InputError as error:
                        raise CheckpointError(str(error)) from None


def open_arrays(params: epath.Path) -> dict[str, ts.TensorStore]:
    """Opens the arrays of a checkpoint, whoever wrote it. Nothing of their content is read.

    Raises:
      CheckpointError: no arrays, or damaged ones.
    """
    metadata = params / "_METADATA"
    if not metadata.exists():
        raise CheckpointError(f"{params}: no such folder of arrays; the checkpoint has no weights")
    refuse_special_files(params)
    try:
        tree = read_object(metadata)["tree_metadata"]
        names = [".".join(str(part["key"]) for part in leaf["key_metadata"]) for leaf in tree.values()]
        context = _context()
        opened = {name: ts.open({**_array(params, name), "open": True}, context=context) for name in names}
        return {name: future.result() for name, future in opened.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{params}: cannot be read ({first_line(error)})") from error


def refuse_unfinished(path: epath.Path) -> None:
    """Says how far the writing of a checkpoint came that is not whole, if this is one.

    Raises:
      CheckpointError: it is; the message counts what is missing and names the first of it.
    """
    for folder in (path, unfinished(path)):
        if not (folder / PROGRESS).exists() or (folder != path and path.exists()):
            continue
        try:
            state = read_object(folder / PROGRESS)
            missing = [name for name in state["names"] if name not in state["done"]]
            total = len(state["names"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{folder}: an unfinished conversion whose {PROGRESS} cannot be read") from None
        first = f", the first of them {missing[0]}" if missing else ""
        raise CheckpointError(
            f"{folder}: an unfinished conversion: {len(missing)} of {total} tensors are missing{first}; "
            "run the same conversion again to go on with it"
        )


def _array(params: epath.Path, name: str) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": _url(params), "path": f"{name}/"}}


def _url(folder: epath.Path) -> str:
    """A folder as tensorstore names it: gs://bucket/path/ or file:///path/."""
    text = str(folder)
    return f"{text}/" if "://" in text else f"file://{folder.resolve()}/"


def _context(**options: Any) -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": 32 << 20}, **options})  # for the store's index, not arrays


def _orbax_metadata(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    tree = {}
    for name, spec in specs.items():
        keys = name.split(".")
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],  # 2: the key of a dict
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(spec.shape)},
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
