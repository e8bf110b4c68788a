"""What each TPU chip can do, from the vendor's pages, and the slices that can be rented.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read November 2026. Interconnect is counted one way,
over all of a chip's links (4,800 Gbit/s of a v5p are 600 GB/s; the page of TPU7x gives 1,200 GB/s, both ways). The
usable memory is what the TPU compiler (libtpu 0.0.42) itself grants a program; a v4 and a TPU7x chip are two devices to
it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

GIB = 2**30


class TopologyError(ValueError):
    """A topology that does not exist; the message says which nearby ones do."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip.

    Attributes:
      flops: bfloat16 operations a second.
      memory: bytes a program may use on one device.
      hbm: bytes a second to and from memory.
      ici: bytes a second that arrive over all its links within a slice.
      dcn: bytes a second that arrive over the data-centre network, its share of the host's.
      devices: JAX devices it appears as.
      dims: of the torus, 2 or 3.
      most: chips of the largest slice.
      price: US dollars an hour, list price on demand in the cheapest US region; none for a CPU.
    """

    name: str
    flops: float
    memory: float
    hbm: float
    ici: float
    dcn: float
    devices: int
    dims: int
    most: int
    price: float | None


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 15.25 * GIB, 1228e9, 300e9, 50e9 / 8, 2, 3, 4096, 3.22),
        Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 25e9 / 8, 1, 2, 256, 1.20),
        Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 50e9 / 8, 1, 3, 6144, 4.20),
        Chip("v6e", 918e12, 31.25 * GIB, 1640e9, 400e9, 100e9 / 8, 1, 2, 256, 2.70),
        Chip("tpu7x", 2307e12, 94.75 * GIB, 7380e9, 600e9, 100e9 / 8, 2, 3, 9216, 12.00),
    )
}

SMALL_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
"""Every slice of v5e and v6e."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some slices of a chip in a shape: `v5p:4x4x4`. `cpu` is this machine, one device."""

    chip: Chip | None
    shape: tuple[int, ...] = ()
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" if self.chip else "cpu"

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        return self.chips * (self.chip.devices if self.chip else 1)

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """A topology from `chip:shape` (v5p:4x4x4), `chip-chips` (v6e-256), or `cpu`.

    Raises:
      TopologyError: an unknown chip, a shape it does not come in, or less than one slice, with the nearest that exist.
    """
    if slices < 1:
        raise TopologyError(f"slices: expected at least 1, found {slices}")
    if text == "cpu":
        if slices != 1:
            raise TopologyError("slices: this machine is one; give a TPU topology to plan several")
        return Topology(None)
    name, separator, size = re.fullmatch(r"([^:-]*)([:-]?)(.*)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    if name not in CHIPS:
        near = difflib.get_close_matches(name, [*CHIPS, "cpu"], 1, cutoff=0.4)
        known = ", ".join(f"{chip}:{'4x4' if CHIPS[chip].dims == 2 else '4x4x4'}" for chip in CHIPS)
        raise TopologyError(
            f"topology {text}: unknown chip {name!r}"
            + (f"; did you mean {near[0]}?" if near else f"; known are {known}")
        )
    chip = CHIPS[name]
    if separator == "-" and size.isdigit():
        shape = shape_of(chip, int(size))
    elif separator == ":" and re.fullmatch(r"\d+(x\d+)*", size):
        shape = tuple(int(side) for side in size.split("x"))
    else:
        raise TopologyError(f"topology {text}: expected {name}:{'4x4' if chip.dims == 2 else '4x4x4'} or {name}-64")
    if len(shape) != chip.dims:
        raise TopologyError(f"topology {text}: {name} is a {chip.dims}-D torus; try {nearest(chip, math.prod(shape))}")
    if chip.dims == 2 and shape not in SMALL_2D:
        raise TopologyError(
            f"topology {text}: no such slice of {name}; the nearest is {nearest(chip, math.prod(shape))}"
        )
    if chip.dims == 3 and not _is_slice_3d(shape, chip):
        raise TopologyError(
            f"topology {text}: a slice of {name} is 2x2x1, 2x2x2, 2x2x4, 2x4x4 or sides of multiples of 4 in growing "
            f"order, up to {chip.most} chips; the nearest is {nearest(chip, math.prod(shape))}"
        )
    return Topology(chip, shape, slices)


def _is_slice_3d(shape: tuple[int, ...], chip: Chip) -> bool:
    if shape in ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)):
        return True
    return (
        all(side % 4 == 0 and side for side in shape) and list(shape) == sorted(shape) and math.prod(shape) <= chip.most
    )


def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Every slice of a chip, from small to large."""
    if chip.dims == 2:
        return list(SMALL_2D)
    sides = range(4, 33, 4)
    cubes = [(a, b, c) for a in sides for b in sides for c in sides if _is_slice_3d((a, b, c), chip)]
    cubes.sort(key=lambda shape: (math.prod(shape), shape[-1] - shape[0]))
    return [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *cubes]


def shape_of(chip: Chip, chips: int) -> tuple[int, ...]:
    """The most cube-like slice of so many chips."""
    for shape in shapes(chip):
        if math.prod(shape) == chips:
            return shape
    raise TopologyError(f"topology {chip.name}-{chips}: no such slice; the nearest is {nearest(chip, chips)}")


def nearest(chip: Chip, chips: int) -> str:
    """The slice of the nearest number of chips, as one writes it."""
    shape = min(shapes(chip), key=lambda shape: abs(math.log(math.prod(shape) / max(chips, 1))))
    return f"{chip.name}:{'x'.join(map(str, shape))}"
