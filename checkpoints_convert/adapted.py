"""Adapters and their base as a source of released tensors, merged as they are read: W + scale·A·B, rows at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epath

from checkpoints_convert.safetensors_files import Tensor
from checkpoints_convert.sources import OrbaxFolder, released_view
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints.layout import PARAMS, open_arrays
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.models.hf_names import tensor_map


class AdaptedFolder:
    """Adapters and their base. What is wrong with the base is in `problems`.

    Raises:
      CheckpointError: the adapters' description is malformed, or their base missing or changed.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = checkpoints.locate(folder)
        self.about = checkpoints.read_about(self.folder)
        self._base = open_checkpoint(self.about.base)
        self._arrays = open_arrays(self.folder / PARAMS)
        self._places = tensor_map(self.config)

    @property
    def config(self) -> StepAudioConfig:
        return self._base.config

    @property
    def problems(self) -> list[str]:
        return self._base.problems

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
