"""The plan of one program on one topology: compiled ahead of time, weighed, and held against the chip's datasheet.

Every figure comes from the compiled program or the datasheet. The floors say how fast the step could be if one resource
alone limited it and were used to the full; no step is as fast, and nothing here was measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stepaudio_jax.parallel import Program, make_mesh
from stepaudio_jax.parallel.chips import GIB, Topology
from stepaudio_jax.plan import hlo_costs
from stepaudio_jax.plan.devices import devices, quiet
from stepaudio_jax.plan.hlo import Hlo
from stepaudio_jax.plan.hlo_collectives import Collective, collectives

STAGES = {
    "supervised": "stepaudio_jax.training.stage",
    "serve": "stepaudio_jax.inference.stage",
    "rl": "stepaudio_jax.rl.programs",
}
"""Stages by the name a config gives itself; each module has `programs(config, mesh)`."""

SPARE = 0.05
"""Of the memory, to be left free: fragments, the runtime's own buffers, a batch of another shape."""


class PlanError(ValueError):
    """A plan that cannot be made; the message names the field and what was expected."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes are per device (a v5p or v6e chip; half a TPU7x chip), times in seconds.

    Attributes:
      about: what one call of the program does.
      groups: what the arguments hold, by name.
      activations: kept by the forward pass for the backward.
      temporaries: everything else that is not an argument.
      peak: all together; from the compiler's refusal where the program does not fit.
      capacity: what a program may use; none for a CPU.
      model_flops: what the model needs, over all devices.
      peak_flops: of a chip, a second.
      compiled_flops: what the program computes, over all devices.
      recompute: compiled over model FLOPs, without the backward kernel's scores and the second pass over the logits.
      collectives: bytes that arrive at a device, by kind and mesh axes.
      floors: by resource.
    """

    program: str
    about: str
    topology: str
    chips: int
    mesh: dict[str, int]
    groups: dict[str, float]
    activations: float
    temporaries: float
    peak: float
    capacity: float | None
    peak_flops: float | None
    fits: bool | None
    model_flops: float
    compiled_flops: float
    recompute: float
    collectives: dict[str, float]
    in_loops: list[str]
    floors: dict[str, float]
    tokens: int
    compile_seconds: float

    @property
    def binds(self) -> str | None:
        """The resource of the highest floor."""
        return max(self.floors, key=lambda name: self.floors[name]) if self.floors else None

    @property
    def floor(self) -> float | None:
        return max(self.floors.values()) if self.floors else None

    @property
    def tokens_per_second_per_chip(self) -> float | None:
        """At the floor: more than any run will reach."""
        return self.tokens / self.floor / self.chips if self.floor else None

    @property
    def utilisation(self) -> float | None:
        """Model FLOPs utilisation (MFU, arXiv:2204.02311) at the floor, to hold against what a run reaches."""
        if not self.floor or not self.peak_flops:
            return None
        return self.model_flops / self.floor / (self.peak_flops * self.chips)

    def to_json(self) -> dict[str, Any]:
        names = ("binds", "floor", "tokens_per_second_per_chip", "utilisation")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}


def stage_programs(config: Any, mesh: Mesh) -> dict[str, Program]:
    """The programs of a config's stage.

    Raises:
      PlanError: a stage that does not exist.
    """
    stage = config.get("stage", "supervised")
    if stage not in STAGES:
        near = difflib.get_close_matches(stage, STAGES, 1)
        raise PlanError(
            f"config.stage: expected one of {', '.join(STAGES)}, found {stage!r}" + (f"; {near[0]}?" if near else "")
        )
    return importlib.import_module(STAGES[stage]).programs(config, mesh)


def plan_config(config: Any, topology: Topology, *, only: str | None = None) -> list[Plan]:
    """The plans of every program of a config on a topology.

    Args:
      only: the name of one program.

    Raises:
      PlanError, MeshError, ShardingError, TopologyError, ConfigError: what does not fit together, in words.
    """
    mesh = make_mesh(config.mesh, devices(topology))
    programs = stage_programs(config, mesh)
    if only is not None and only not in programs:
        raise PlanError(f"program: expected one of {', '.join(programs)}, found {only!r}")
    return [plan_program(name, p, mesh, topology) for name, p in programs.items() if only in (None, name)]


def plan_program(name: str, program: Program, mesh: Mesh, topology: Topology) -> Plan:
    """Compiles one program and weighs it."""
    chip = topology.chip
    inner = jax.tree.leaves(program.in_shardings)[0].mesh
    groups = {label: _bytes_per_device(program, path) for label, path in program.groups.items()}
    begun = time.monotonic()
    with quiet() if chip else contextlib.nullcontext():
        lowered = program.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            need = _needed(str(error))
            if need is None:
                raise
            compiled = None
    seconds = time.monotonic() - begun
    capacity = chip.memory if chip else None
    common = {
        "program": name,
        "about": program.about,
        "topology": str(topology),
        "chips": topology.chips,
        "mesh": dict(mesh.shape),
        "groups": groups,
        "capacity": capacity,
        "peak_flops": chip.flops if chip else None,
        "model_flops": program.flops,
        "tokens": program.tokens,
        "compile_seconds": seconds,
    }
    if compiled is None:
        nothing = {"activations": 0.0, "compiled_flops": 0.0, "recompute": 0.0, "collectives": {}, "in_loops": []}
        rest = max(need - sum(groups.values()), 0)
        return Plan(**common, **nothing, temporaries=rest, peak=need, fits=False, floors={})

    memory = compiled.memory_analysis()
    temporaries = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + temporaries
    hlo = Hlo(compiled.as_text())
    stacked = hlo_costs.stacked(hlo)
    activations = min(stacked["forward"], temporaries) if stacked["backward"] else 0.0
    found = collectives(hlo, inner.shape)
    by_kind: dict[str, float] = {}
    for one in found:
        key = f"{one.kind} over {'+'.join(one.axes) or 'nothing'}"
        by_kind[key] = by_kind.get(key, 0.0) + one.bytes * one.times
    compiled_flops = hlo_costs.flops(hlo) * mesh.size
    kernels = hlo_costs.kernels(hlo).items()
    scores = sum(flops for kernel, (_, flops) in kernels if kernel.endswith("backward")) / 5 * mesh.size
    return Plan(
        **common,
        activations=activations,
        temporaries=temporaries - activations,
        peak=peak,
        fits=None if capacity is None else peak <= capacity * (1 - SPARE),
        compiled_flops=compiled_flops,
        recompute=(compiled_flops - scores - program.repeated_flops) / program.flops if program.flops else 0.0,
        collectives={key: moved for key, moved in sorted(by_kind.items(), key=lambda item: -item[1]) if moved >= 1e5},
        in_loops=sorted({_describe(one) for one in found if one.loop and one.bytes >= 1e5}),
        floors=_floors(compiled_flops / mesh.size, hlo_costs.memory_traffic(hlo), found, topology),
    )


def _floors(flops: float, traffic: float, collectives: list[Collective], topology: Topology) -> dict[str, float]:
    """Seconds that each resource alone takes, from what one device computes, moves to and from memory and receives."""
    if (chip := topology.chip) is None:
        return {}
    across = [c for c in collectives if topology.slices > 1 and "data" in c.axes]
    within = [c for c in collectives if c not in across]
    floors = {
        "arithmetic": flops / (chip.flops / chip.devices),
        "memory": traffic / (chip.hbm / chip.devices),
        "interconnect": sum(c.bytes * c.times for c in within) / (chip.ici / chip.devices),
    }
    if topology.slices > 1:
        floors["network"] = sum(c.bytes * c.times for c in across) / (chip.dcn / chip.devices)
    return floors


def _describe(one: Collective) -> str:
    return f"{one.kind} over {'+'.join(one.axes)}, loop of {one.loop}"


def _bytes_per_device(program: Program, path: tuple[Any, ...]) -> float:
    """What a part of the arguments takes on one device."""
    tree, shardings = program.abstract_args[path[0]], program.in_shardings[path[0]]
    for field in path[1:]:
        tree, shardings = getattr(tree, field), getattr(shardings, field)

    def size(leaf, sharding) -> float:
        return float(np.prod(sharding.shard_shape(leaf.shape), dtype=np.float64)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, shardings)), 0.0)


UNITS: Mapping[str, float] = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def _needed(refusal: str) -> float | None:
    """Bytes that a program would need, from the compiler's words when it does not fit."""
    if "RESOURCE_EXHAUSTED" not in refusal and "memory" not in refusal:
        return None
    numbers = [
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
        r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds",
        r"[Tt]otal (?:hbm )?(?:memory|usage)[^\d]*([\d.]+)([KMGT]?)",
    ]
    for number in numbers:
        if found := re.search(number, refusal):
            return float(found[1]) * UNITS[found[2]]
    return None
