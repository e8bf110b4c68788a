"""Where tensors come from: a Hugging Face folder, one of our checkpoints, or a random one.

A source shows every tensor under its released name and in the released axis order, whatever it is stored as, and reads
it row by row, so that what converts, compares and exports does not know the difference.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from etils import epath

from checkpoints_convert.safetensors_files import Reader, Tensor, is_buffer
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints.layout import PARAMS, open_arrays, parameter_folders
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inputs import InputError, one_line, read_object, shown
from stepaudio_jax.models.hf_names import ORDER, Place, released_shapes, tensor_map

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SLAB_BYTES = 32 << 20
"""Bytes read, changed and written at a time."""


class ConversionError(ValueError):
    """What keeps a conversion from starting or ending, all of it."""

    def __init__(self, *problems: str):
        self.problems = tuple(map(one_line, problems))
        super().__init__("; ".join(self.problems))


class Source(Protocol):
    """Tensors under their released names."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Type and shape of each."""
        ...

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along the first axis, contiguous."""
        ...

    def multiple(self, name: str) -> int:
        """Rows that are best read together."""
        ...

    def fingerprint(self) -> str:
        """The same for the same content, without reading all of it."""
        ...


def slabs(tensor: Tensor, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about SLAB_BYTES that together are the tensor, each but the last a multiple of `multiple`."""
    step = max(1, SLAB_BYTES // max(1, tensor.row_bytes * multiple)) * multiple
    for start in range(0, tensor.rows, step):
        yield start, min(start + step, tensor.rows)


class HfFolder:
    """A folder of safetensors shards. What is wrong with it is collected in `problems`, not raised.

    Attributes:
      unreadable: tensors that the index puts into shards that are missing or broken.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.problems: list[str] = []
        self.tensors: dict[str, Tensor] = {}
        self.unreadable: set[str] = set()
        self._places: dict[str, tuple[Reader, str]] = {}
        for file, names in self._files().items():  # no names: whatever it holds
            if (reader := self._open(file)) is None:
                self.unreadable.update(names)
                continue
            for name in names or reader.tensors:
                if is_buffer(name):
                    continue
                if name not in reader.tensors:
                    self.problems.append(f"{self.folder / file}: has no {name}, though {INDEX} says so")
                elif name in self.tensors:
                    self.problems.append(f"{name}: in two shards, {file} is the second")
                else:
                    self.tensors[name] = reader.tensors[name]
                    self._places[name] = reader, name
        if self.tensors and (self.folder / ADAPTER).exists():
            warnings.warn(f"{self.folder / ADAPTER} is no part of the model and left out", stacklevel=2)

    def _open(self, file: str) -> Reader | None:
        path = self.folder / file
        try:
            return Reader(Path(path))
        except FileNotFoundError:
            self.problems.append(f"{path}: no such shard, though {INDEX} names it")
        except OSError as error:
            self.problems.append(f"{path}: cannot be read ({error.strerror})")
        except InputError as error:
            self.problems.append(str(error))
        return None

    def _files(self) -> dict[str, list[str]]:
        """File → the names the index gives it; no names stand for all it holds. As transformers reads a folder: the
        whole model.safetensors if there is one, else the shards of the index."""
        shards = self._index()
        if shards is None:
            return {}
        if (self.folder / WHOLE).exists() and WHOLE not in shards:
            if shards:
                warnings.warn(f"{self.folder}: {WHOLE} is read, and not the shards that {INDEX} names", stacklevel=2)
            return {WHOLE: []}
        if shards:
            return shards
        files = sorted(path.name for path in self.folder.glob("*.safetensors") if path.name != ADAPTER)
        if not files:
            pickles = [path.name for pattern in PICKLES for path in self.folder.glob(pattern)]
            self.problems.append(
                f"{self.folder}: holds only an adapter ({ADAPTER}); from-peft reads it beside its base"
                if (self.folder / ADAPTER).exists()
                else f"{self.folder}: holds only pickled weights ({pickles[0]}), which run code when they are read; "
                "save them as safetensors first (transformers: save_pretrained with safe serialization)"
                if pickles
                else f"{self.folder}: no *.safetensors in it"
            )
        return {file: [] for file in files}

    def _index(self) -> dict[str, list[str]] | None:
        """File → the names that the index gives it; empty without one, or one that names nothing; None: unusable."""
        path = self.folder / INDEX
        try:
            if not isinstance(names := read_object(path).get("weight_map"), dict):
                raise InputError(f"{path}: weight_map: expected an object, found {shown(names)}")
        except FileNotFoundError:
            return {}
        except InputError as error:
            self.problems.append(f"{path}: not an index of shards ({str(error).removeprefix(f'{path}: ')})")
            return None
        shards: dict[str, list[str]] = {}
        for name, file in names.items():
            if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                self.problems.append(f"{path}: names {shown(file)}, which is not a safetensors file of this folder")
                return None
            shards.setdefault(file, []).append(name)
        return dict(sorted(shards.items()))

    def leave_out(self, name: str) -> None:
        """From now on as if this tensor were not stored."""
        del self.tensors[name], self._places[name]

    def rename(self, name: str, new: str) -> None:
        self.tensors[new], self._places[new] = self.tensors[name], self._places[name]
        self.leave_out(name)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        reader, stored = self._places[name]
        return reader.read(stored, start, stop)

    def multiple(self, name: str) -> int:
        return 1

    def fingerprint(self) -> str:
        """Of names, types, shapes, and of the sizes and times of the files."""
        parts = [f"{name} {tensor.dtype} {tensor.shape}" for name, tensor in sorted(self.tensors.items())]
        for path in sorted({reader.path for reader, _ in self._places.values()}):
            parts.append(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class OrbaxFolder:
    """One of our checkpoints. Its arrays are read row by row in the released order."""

    def __init__(self, folder: epath.PathLike):
        self.folder = checkpoints.locate(folder)
        self.config = StepAudioConfig.read(self.folder)
        self._arrays = {k: v for folder in parameter_folders(self.folder) for k, v in open_arrays(folder).items()}
        self._places = tensor_map(self.config)
        self.problems = []
        ours = {".".join(place.path) for place in self._places.values()}
        self.problems += [f"{self.folder / PARAMS}: missing {name}" for name in sorted(ours - set(self._arrays))]
        self.problems += [f"{self.folder / PARAMS}: unknown {name}" for name in sorted(set(self._arrays) - ours)]
        self.tensors, released = {}, released_shapes(self.config)
        layers = {place.path: place.layer + 1 for place in self._places.values() if place.layer is not None}
        for name, place in self._places.items():
            array = self._arrays.get(".".join(place.path))
            if array is None:
                continue
            order = ORDER[place.order] or range(len(released[name]))
            shape = tuple(released[name][axis] for axis in order)
            shape = shape if place.layer is None else (layers[place.path], *shape)
            if tuple(array.shape) == shape:
                self.tensors[name] = Tensor(np.dtype(array.dtype.numpy_dtype), released[name])
            elif not place.layer:  # once for a stack of layers
                found = f"{'.'.join(place.path)} has shape {tuple(array.shape)}"
                self.problems.append(f"{self.folder / PARAMS}: {found}, the config asks for {shape}")

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        place = self._places[name]
        view = released_view(self._arrays[".".join(place.path)], place)
        return view[start:stop].read(order="C").result()

    def multiple(self, name: str) -> int:
        place = self._places[name]
        return chunk_rows(self._arrays[".".join(place.path)], place)

    def fingerprint(self) -> str:
        """Of the store's index, which names every chunk's place, and of the arrays' types and shapes."""
        parts = [f"{name} {array.dtype} {array.shape}" for name, array in sorted(self._arrays.items())]
        index = (self.folder / PARAMS / "manifest.ocdbt").read_bytes()
        return hashlib.sha256("\n".join(parts).encode() + index).hexdigest()


def released_view(array, place: Place):
    """A stored array (tensorstore) as the released tensor: its layer, its axes in the released order."""
    view = array if place.layer is None else array[place.layer]
    order = ORDER[place.order]
    return view if order is None else view.transpose(order)


def chunk_rows(array, place: Place) -> int:
    """Rows of the released tensor after which a new chunk begins."""
    chunk = array.chunk_layout.read_chunk.shape[0 if place.layer is None else 1 :]
    order = ORDER[place.order]
    return chunk[order[0] if order else 0]
