"""What tensors are written into: one of our checkpoints, or a folder of safetensors shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from checkpoints_convert.safetensors_files import Tensor, Writer
from checkpoints_convert.sources import INDEX, chunk_rows, released_view
from stepaudio_jax.checkpoints.layout import PARAMS, ArraySpec, create_arrays
from stepaudio_jax.models.hf_names import ORDER, Place


def array_specs(places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> dict[str, ArraySpec]:
    """The arrays that hold these released tensors, by our names."""
    specs: dict[str, ArraySpec] = {}
    for name, place in places.items():
        tensor = tensors[name]
        order = ORDER[place.order] or range(len(tensor.shape))
        shape = tuple(tensor.shape[axis] for axis in order)
        if place.layer is not None:
            shape = (place.layer + 1, *shape)  # the last layer has the last word
        specs[".".join(place.path)] = ArraySpec(shape, tensor.dtype, place.layer is not None)
    return specs


class OrbaxSink:
    """Released tensors into the arrays of a checkpoint, each layer into its slice of a stack."""

    def __init__(self, folder: epath.Path, places: Mapping[str, Place], tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self._places = places
        self._arrays = create_arrays(folder / PARAMS, array_specs(places, tensors))

    def multiple(self, name: str) -> int:
        place = self._places[name]
        return chunk_rows(self._arrays[".".join(place.path)], place)

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        place = self._places[name]
        view = released_view(self._arrays[".".join(place.path)], place)
        view[start : start + len(rows)].write(rows).result()

    def sync(self) -> None:
        os.sync()  # what lies on gs:// is durable once it is written


class ShardSink:
    """Tensors into numbered safetensors shards and their index."""

    def __init__(self, folder: epath.Path, tensors: Mapping[str, Tensor], max_shard_size: int):
        self.tensors = tensors
        shards = list(split(tensors, max_shard_size))
        self._writers: dict[str, Writer] = {}
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            writer = Writer(Path(folder / file), {name: tensors[name] for name in names})
            self._writers |= dict.fromkeys(names, writer)
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def multiple(self, name: str) -> int:
        return 1

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        self._writers[name].write(name, start, rows)

    def sync(self) -> None:
        for writer in set(self._writers.values()):
            writer.sync()


def split(tensors: Mapping[str, Tensor], max_shard_size: int) -> Iterator[list[str]]:
    """Names in order, as many to a shard as fit; a tensor that is larger than a shard gets one of its own."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > max_shard_size:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names
