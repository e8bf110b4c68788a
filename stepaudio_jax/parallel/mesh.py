"""The mesh: every program's devices, along the same four axes.

data     rows of a batch; parameters are whole along it. The axis that spans slices, over the data-centre network
fsdp     rows of a batch; parameters are split along it and gathered layer by layer (ZeRO-3, arXiv:1910.02054)
context  tokens of a row, for rows longer than a chip (ring attention); parameters are split along it too
tensor   heads, feed-forward columns and vocabulary (Megatron-LM, arXiv:1909.08053)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "context", "tensor")


class MeshError(ValueError):
    """A mesh that cannot be made; the message says what does not multiply out and the nearest that would."""


def mesh_shape(axes: Mapping[str, int], devices: int, slices: int = 1) -> dict[str, int]:
    """The size of every axis for so many devices; an axis of −1 takes what the others leave.

    Raises:
      MeshError: an unknown axis, more than one −1, sizes that do not multiply to the devices, or a data axis that the
        slices do not divide.
    """
    if unknown := sorted(set(axes) - set(AXES)):
        raise MeshError(f"mesh: unknown axis {unknown[0]}; expected some of {', '.join(AXES)}")
    shape = {name: int(axes.get(name, 1)) for name in AXES}
    for name, size in shape.items():
        if size < 1 and size != -1:
            raise MeshError(f"mesh: {name} is {size}; expected a positive number, or -1 for what is left")
    free = [name for name, size in shape.items() if size == -1]
    if len(free) > 1:
        raise MeshError(f"mesh: {' and '.join(free)} are both -1; only one axis can take what is left")
    fixed = math.prod(size for size in shape.values() if size > 0)
    written = " x ".join(f"{name} {size}" for name, size in shape.items() if size != 1) or "1"
    if free and devices % fixed == 0:
        shape[free[0]] = devices // fixed
    elif free:
        raise MeshError(f"mesh: {written}: {devices} devices do not divide by {fixed}; {_nearest(shape, devices)}")
    elif fixed != devices:
        raise MeshError(f"mesh: {written} makes {fixed}, found {devices} devices; {_nearest(shape, devices)}")
    if shape["data"] % slices:
        raise MeshError(
            f"mesh: data is {shape['data']}; with {slices} slices, which it spans, expected a multiple of {slices}"
        )
    return shape


def _nearest(shape: Mapping[str, int], devices: int) -> str:
    """The same mesh with fsdp resized, or, where nothing divides, with every other axis at the nearest divisor."""
    kept: dict[str, int] = {}
    left = devices
    for name in ("tensor", "context", "data"):
        asked = max(shape[name], 1)
        kept[name] = min((d for d in range(1, left + 1) if left % d == 0), key=lambda d: abs(d - asked))
        left //= kept[name]
    kept["fsdp"] = left
    return "the nearest that fits is " + " x ".join(f"{name} {kept[name]}" for name in AXES)


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None, *, slices: int | None = None) -> Mesh:
    """The mesh of all four axes over the devices (by default every process's).

    Neighbours along an axis are neighbours on the torus where the shape allows; over several slices the data axis
    goes from slice to slice, so that only its collectives use the data-centre network.

    Args:
      axes: sizes by name; absent ones are 1, one may be −1.
      slices: by default as many as the devices say. Devices that say nothing (CPUs) are cut into equal groups in
        order of process and number, which lets processes stand in for slices.

    Raises:
      MeshError: see `mesh_shape`.
    """
    devices = list(jax.devices() if devices is None else devices)
    told = {getattr(device, "slice_index", None) for device in devices}
    if slices is None:
        slices = len(told)
    elif len(told) > 1 and len(told) != slices:
        raise MeshError(f"mesh: asked for {slices} slices, the devices are in {len(told)}")
    if len(devices) % slices:
        raise MeshError(f"mesh: {len(devices)} devices do not divide into {slices} slices")
    shape = mesh_shape(axes, len(devices), slices)
    inner = (shape["data"] // slices, *(shape[name] for name in AXES[1:]))
    key = (lambda d: d.slice_index) if len(told) > 1 else (lambda d: 0)
    ordered = sorted(devices, key=key)  # stable: within a slice, as they came
    size = len(devices) // slices
    groups = [_arrange(ordered[i * size : (i + 1) * size], inner) for i in range(slices)]
    return Mesh(np.concatenate(groups), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def in_phases(mesh: Mesh) -> Mesh:
    """The same devices in the same places, fsdp cut in two, "fsdp" and "fsdp_minor", where it spans a TPU's torus.

    Over a whole torus the TPU compiler knows no all-gather or reduce-scatter and makes each an all-reduce of the whole,
    which moves twice the bytes. Along part of its dimensions it knows both, so weights are gathered in two phases, the
    smaller part first, and gradients summed along the larger part first, where both are the real thing.
    """
    major, minor = _phases(mesh.shape["fsdp"], torus_side(list(mesh.devices.flat)))
    if "fsdp_minor" in mesh.shape or minor == 1:
        return mesh
    data, _, *rest = mesh.devices.shape
    names = ("data", "fsdp", "fsdp_minor", *AXES[2:])
    return Mesh(mesh.devices.reshape(data, major, minor, *rest), names, axis_types=(AxisType.Auto,) * len(names))


def _phases(size: int, side: int) -> tuple[int, int]:
    """fsdp as a larger and a smaller part, each along some sides of the torus."""
    if side < 2 or size <= side or size % side:
        return size, 1
    return max(side, size // side), min(side, size // side)


def torus_side(devices: Sequence[Any]) -> int:
    """The longest side of a slice's torus; 1 where devices have no coordinates."""
    first = getattr(devices[0], "slice_index", 0)
    coords = [d.coords for d in devices if d.platform == "tpu" and getattr(d, "slice_index", 0) == first]
    return max((max(x) - min(x) + 1 for x in zip(*coords, strict=True)), default=1)


def _arrange(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """One slice's devices in the shape of its axes, along the physical torus where they are TPUs."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    data, fsdp, *rest = shape
    logical = (data, *_phases(fsdp, torus_side(devices)), *rest)
    cores = len({d.core_on_chip for d in devices})
    if cores == 1:
        return mesh_utils.create_device_mesh(logical, devices, allow_split_physical_axes=True).reshape(shape)
    # Chips that are two devices each: JAX arranges the chips, and a chip's devices stay neighbours on the last axis.
    chips = [d for d in devices if d.core_on_chip == 0]
    sizes = list(logical)
    last = max(i for i, size in enumerate(sizes) if size % cores == 0)
    sizes[last] //= cores
    numbers = {d.id: i for i, d in enumerate(chips)}
    arranged = _by_coordinates(chips, tuple(sizes))
    pairs = {i: [d for d in devices if d.coords == chip.coords] for i, chip in enumerate(chips)}
    both = np.array([[pairs[numbers[d.id]][core] for d in arranged.flat] for core in range(cores)])
    both = np.moveaxis(both.reshape(cores, *sizes), 0, last + 1)
    return both.reshape(shape)


def _by_coordinates(chips: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Chips in order of their coordinates: neighbours along the last axes are neighbours on the torus."""
    return np.array(sorted(chips, key=lambda d: tuple(d.coords)), dtype=object).reshape(shape)
