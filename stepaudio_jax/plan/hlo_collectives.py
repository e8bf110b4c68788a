"""What a compiled program's devices send each other: its collectives, by the bytes that arrive at a device, told apart
by the mesh axes they run along."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from stepaudio_jax.plan.hlo import ARRAY, Hlo, Instruction, array_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: of COLLECTIVES.
      axes: the mesh axes along which its groups run.
      bytes: that arrive at one device each time it runs.
      times: how often it runs in one call of the program.
      loop: how often the innermost loop around it runs, 0 outside of loops.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    loop: int


def collectives(hlo: Hlo, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Every collective of a program, with the mesh axes it runs along."""
    found, chains = [], set()
    for computation, instruction, count in hlo.each():
        kind, loop = instruction.opcode.removesuffix("-start"), hlo.loops.get(computation, 0)
        if between := instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"'):  # slices, through the hosts
            if kind == "send":
                kind, moved = _between_slices(between, instruction, mesh_shape)
                found.append(Collective(kind, ("data",), moved, count, loop))
            continue
        if kind not in COLLECTIVES:
            continue
        # One that runs beside several fusions is written into each of them, with one chain.
        if chain := instruction.attribute(r'chain_id="(\d+)"'):
            chain = (chain, loop, kind, re.sub(r"\{[^}]*\}", "", instruction.type))
            if chain in chains:
                continue
            chains.add(chain)
        group = first_group(instruction.attributes)
        kind, moved = _within_a_slice(kind, instruction, computation, len(group))
        found.append(Collective(kind, _axes_of(group, mesh_shape), moved, count, loop))
    return found


def _within_a_slice(kind: str, instruction: Instruction, computation: str, members: int) -> tuple[str, float]:
    """What it truly is, and the bytes that arrive at one of a group's members."""
    whole = array_bytes(instruction.type, on_chip=True)
    if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        whole = _last_bytes(instruction.type)  # a start's type holds its operands beside its results
    if kind == "collective-permute":
        return kind, whole
    others = max(members, 1) - 1
    if kind == "reduce-scatter":
        return kind, whole * others  # the type is one part of the sum
    moved = whole * others / (others + 1)
    if kind != "all-reduce":
        return kind, moved
    if computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", moved  # a fusion of the sum and of the taking of one's part
    return kind, 2 * moved


def _between_slices(transfer: str, send: Instruction, mesh_shape: Mapping[str, int]) -> tuple[str, float]:
    """A collective along data over the data-centre network: hosts exchange what the device sends them."""
    parts = mesh_shape.get("data", 1)
    kind = transfer.lower().replace("_", "-")
    array = ARRAY.search(send.type)
    whole = array_bytes(array[0], on_chip=True) if array else 0.0
    return kind, whole * (parts - 1) / parts * (2 if kind == "all-reduce" else 1)


def _last_bytes(kind: str) -> float:
    """Of the results in a start's type, (operands, results, …): the larger half, results being at least as large."""
    sizes = [array_bytes(match[0], on_chip=True) for match in ARRAY.finditer(kind) if match[1] not in ("u32", "s32")]
    return (
        sum(sizes) - min(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :])) if len(sizes) > 1 else sum(sizes)
    )


def first_group(attributes: str) -> list[int]:
    """The devices of the first group of a collective, in whatever of the notations it is written."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return [int(found[1]), int(found[2])]
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return [int(d) for d in found[1].split(",") if d]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, reshape = ([int(d) for d in part.split(",")] for part in found.groups()[:2])
        ids = np.arange(math.prod(reshape)).reshape(reshape)
        if found[3]:
            ids = ids.transpose([int(d) for d in found[3].split(",")])
        return ids.reshape(shape)[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        along = re.findall(r"'(\w+)'", found[2])
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return ids[tuple(slice(None) if name in along else 0 for name in sizes)].reshape(-1).tolist()
    return []


def _axes_of(group: list[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a group's members differ; the pieces of fsdp count as fsdp."""
    if len(group) < 2 or max(group) >= math.prod(mesh_shape.values()):
        return ()
    places = np.array(np.unravel_index(group, list(mesh_shape.values())))
    differing = [name for name, places in zip(mesh_shape, places, strict=True) if len(set(places.tolist())) > 1]
    return tuple(dict.fromkeys(name.removesuffix("_minor") for name in differing))
