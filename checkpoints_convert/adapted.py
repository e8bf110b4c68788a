"""Adapters and their base as a source of released tensors, merged as they are read: W + scale·A·B, rows at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epath
from flax import nnx

from checkpoints_convert.safetensors_files import Tensor
from checkpoints_convert.sources import OrbaxFolder, released_view
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints.layout import PARAMS, open_arrays
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.models.hf_names import tensor_map
from stepaudio_jax.models.lora import adapted_shapes, is_lora


class AdaptedFolder:
    """Adapters and their base. What is wrong with either's arrays is in `problems`.

    Raises:
      CheckpointError: the adapters' description is malformed, or their base missing or changed.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = checkpoints.locate(folder)
        self.about = checkpoints.read_about(self.folder)
        self._base = open_checkpoint(self.about.base)
        self._arrays = open_arrays(self.folder / PARAMS)
        self._places = tensor_map(self.config)
        self.problems = [*self._base.problems, *self._array_problems()]

    @property
    def config(self) -> StepAudioConfig:
        return self._base.config

    def _array_problems(self) -> list[str]:
        """What keeps the stored arrays from being those that lora.json describes."""
        state = nnx.to_flat_state(nnx.state(adapted_shapes(self.config, self.about.lora), nnx.Param))
        asked = {
            ".".join(map(str, path)): tuple(leaf.shape)
            for path, leaf in state
            if is_lora(path) or path[0] in self.about.modules
        }
        found = {name: tuple(array.shape) for name, array in self._arrays.items()}
        where = self.folder / PARAMS
        return [
            *(f"{where}: missing {name}" for name in asked if name not in found),
            *(f"{where}: unknown {name}" for name in found if name not in asked),
            *(
                f"{where}: {name} has shape {found[name]}, {checkpoints.LORA} asks for {shape}"
                for name, shape in asked.items()
                if found.get(name, shape) != shape
            ),
        ]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """As the base stores them."""
        return self._base.tensors

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        place, dtype = self._places[name], self.tensors[name].dtype
        whole = self._arrays.get(".".join(place.path))
        if whole is not None:  # of a module that was trained as a whole
            return released_view(whole, place)[start:stop].read(order="C").result().astype(dtype)
        rows = self._base.read(name, start, stop)
        a, b = (self._arrays.get(".".join((*place.path[:-1], "lora", letter))) for letter in "ab")
        if place.path[-1] != "kernel" or a is None or b is None:
            return rows
        if place.layer is not None:
            a, b = a[place.layer], b[place.layer]
        # A released matrix is [out, in]: its rows are columns of B.
        product = b[:, start:stop].read().result().T @ a.read().result().T
        return (rows.astype(np.float32) + np.float32(self.about.lora.scale) * product).astype(dtype)

    def multiple(self, name: str) -> int:
        return self._base.multiple(name)

    def fingerprint(self) -> str:
        """Of the base, and of what the adapters say."""
        return f"{self._base.fingerprint()} {checkpoints.fingerprint(self.folder)} {self.about.lora}"


def open_checkpoint(folder: epath.PathLike) -> OrbaxFolder | AdaptedFolder:
    """One of our checkpoints, whole or adapters."""
    return AdaptedFolder(folder) if checkpoints.is_adapters(checkpoints.locate(folder)) else OrbaxFolder(folder)
