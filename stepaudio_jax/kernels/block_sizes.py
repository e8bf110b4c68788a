"""Tile sizes of the TPU kernels, per chip and head_dim, and the VMEM they need.

The table holds what `python -m benchmarks.attention_work search` found over the TPU compiler's own schedules. Dense
rows want large tiles; packed ones smaller, because a tile that two dialogues share is multiplied whole.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jax.experimental.pallas import tpu as pltpu

from stepaudio_jax.kernels.platform import platform

LANES = 128
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Multiples of 128.

    Attributes:
      block_q, block_kv: a tile of the forward pass: queries, counted over the heads that share a key head, and keys.
      block_kv_load: keys and values brought into VMEM at once, a multiple of block_kv.
      block_q_backward, block_kv_backward: a tile of the backward pass.
      vmem_limit: bytes of VMEM a kernel may use.

    Raises:
      ValueError: a size that is no such multiple.
    """

    block_q: int = 1024
    block_kv: int = 512
    block_kv_load: int = 16_384
    block_q_backward: int = 512
    block_kv_backward: int = 1024
    vmem_limit: int = 100 * MIB

    def __post_init__(self):
        for name in ("block_q", "block_kv", "block_kv_load", "block_q_backward", "block_kv_backward"):
            size, unit = getattr(self, name), self.block_kv if name == "block_kv_load" else LANES
            if size < 1 or size % unit:
                raise ValueError(f"{name}: expected a positive multiple of {unit}, found {size}")

    def fit(self, q_len: int, kv_len: int, group: int) -> BlockSizes:
        """For arrays of these lengths: tiles of equal size, queries counted in one head of `group`."""
        block_kv = _even(kv_len, self.block_kv)
        return dataclasses.replace(
            self,
            block_q=_even(q_len, round(self.block_q / group)),
            block_kv=block_kv,
            block_kv_load=max(self.block_kv_load // block_kv, 1) * block_kv,
            block_q_backward=_even(q_len, round(self.block_q_backward / group)),
            block_kv_backward=_even(kv_len, self.block_kv_backward),
        )

    def check_forward(self, group: int, dim: int, itemsize: int) -> None:
        """Refuses sizes, as `fit` has made them, whose forward pass would not fit into VMEM.

        Raises:
          ValueError: telling the need and the limit.
        """
        dim = max(dim, LANES)  # VMEM pads the last axis
        rows = group * self.block_q
        need = 3 * 4 * rows * self.block_kv  # two buffers of scores, and what spills
        need += 2 * 2 * self.block_kv_load * dim * itemsize  # keys and values, in two buffers each
        need += rows * dim * (4 + 2 * 2 * itemsize)  # the sum; queries and output, in two buffers each
        self._check_vmem("block_q, block_kv and block_kv_load", need)

    def _check_vmem(self, names: str, need: int) -> None:
        if need > self.vmem_limit:
            raise ValueError(
                f"{names}: expected to fit into {self.vmem_limit / MIB:.0f} MiB of VMEM, found {self} to need "
                f"{need / MIB:.0f} MiB; choose smaller ones"
            )

    def backward_span(self, q_len: int, group: int, dim: int, itemsize: int) -> int:
        """How many tiles of queries the backward pass keeps in VMEM at once, in spans of nearly equal length, of sizes
        that `fit` has made.

        Raises:
          ValueError: not even one tile fits.
        """
        dim = max(dim, LANES)  # VMEM pads the last axis
        rows, keys = group * self.block_q_backward, self.block_kv_backward
        working = 4 * 4 * rows * keys  # scores and their gradients, each also cast
        working += keys * dim * (2 * 2 * itemsize + 4 * 2 * 4 + 2 * 4)  # k, v; dk, dv coming in, going out and summed
        # Twice q, do and dq, for the next head's come while this one's are used; dq's sum; lse, delta, start and stop
        # in registers of eight rows.
        tile = rows * (dim * (2 * 3 * itemsize + 4) + 2 * 4 * 8 * 4)
        tiles = -(-q_len // self.block_q_backward)
        self._check_vmem("block_q_backward and block_kv_backward", working + tile)
        room = (self.vmem_limit - working) // tile
        return math.ceil(tiles / math.ceil(tiles / room))


def _even(length: int, tile: int) -> int:
    """The multiple of 128 that cuts a length into equal tiles of about `tile`: 1,500 is twice 768, not thrice 512."""
    tile = max(round(tile / LANES), 1) * LANES
    return -(-length // (-(-length // tile) * LANES)) * LANES


class Tiles(NamedTuple):
    """block_q, block_kv of the forward and of the backward pass."""

    forward: tuple[int, int]
    backward: tuple[int, int]


DENSE = {
    ("v4", 64): Tiles((512, 512), (512, 256)),
    ("v4", 128): Tiles((512, 512), (512, 256)),
    ("v5e", 64): Tiles((1024, 1024), (512, 1024)),
    ("v5e", 128): Tiles((1024, 512), (1024, 256)),
    ("v5p", 64): Tiles((1024, 1024), (512, 1024)),
    ("v5p", 128): Tiles((1024, 512), (1024, 256)),
    ("v6e", 64): Tiles((1024, 1024), (1024, 1024)),
    ("v6e", 128): Tiles((1024, 512), (1024, 512)),
}

PACKED = {
    ("v4", 64): Tiles((512, 512), (512, 256)),
    ("v4", 128): Tiles((512, 256), (512, 256)),
    ("v5e", 64): Tiles((512, 512), (512, 512)),
    ("v5e", 128): Tiles((1024, 128), (512, 256)),
    ("v5p", 64): Tiles((512, 512), (512, 512)),
    ("v5p", 128): Tiles((1024, 128), (512, 256)),
    ("v6e", 64): Tiles((512, 512), (512, 512)),
    ("v6e", 128): Tiles((1024, 256), (1024, 256)),
}


def for_chip(head_dim: int, *, packed: bool) -> BlockSizes:
    """The table's sizes for the TPU of the mesh in use, else of this process, else (interpreted) for a v5e; chips
    that are not in it take those of a v4, which need the least."""
    chip, vmem = "v5e", 128 * MIB
    if platform() == "tpu":
        info = pltpu.get_tpu_info()
        chip, vmem = str(info.chip_version), info.vmem_capacity_bytes
    table = PACKED if packed else DENSE
    tiles = table.get((chip, head_dim)) or table["v4", head_dim]
    # Between loads the two halves of the forward pass do not overlap, which costs half a block: rarely, then.
    load = 2048 if vmem < 32 * MIB else 16_384
    return BlockSizes(*tiles.forward, load, *tiles.backward, vmem_limit=vmem * 7 // 8)
