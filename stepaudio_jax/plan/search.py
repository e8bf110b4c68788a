"""The best plan that fits: mesh shape, microbatches, rematerialisation, and, if nothing fits, less of a batch.

Candidates are ranked by a rough estimate of their time and memory; the compiler, asked in that order, decides.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from stepaudio_jax.parallel.chips import Topology
from stepaudio_jax.plan.plan import Plan, PlanError, plan_config

REMAT_COST = {"products": 0.0, "gate": 0.12, "attention": 0.20, "full": 0.24}
"""About how much of the model's arithmetic is done again, from what is saved (models.layers.SAVED) to nothing."""

MICROBATCHES = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Found:
    """What was tried, in order, and the best of it that fits; none if nothing does."""

    tried: list[tuple[str, Plan]]
    best: list[Plan] | None
    settings: dict[str, Any]


def fit(
    config: Any, topology: Topology, *, tries: int = 8, progress: Callable[[str], None] = lambda text: None
) -> Found:
    """Searches the settings of a config on a topology for the highest tokens/s/chip at the floor.

    After the first candidate that fits, two more are compiled, for the estimate may have ranked them wrongly.

    Args:
      tries: most candidates to compile.
      progress: told of each before it is compiled.

    Raises:
      PlanError: a config without anything to vary.
    """
    tried: list[tuple[str, Plan]] = []
    fitting: list[tuple[list[Plan], dict[str, Any]]] = []
    refusal: Exception | None = None
    too_much: dict[str, Any] | None = None
    for settings in candidates(config, topology):
        if len(tried) >= tries or len(fitting) >= 3:
            break
        if too_much is not None and not _less(settings, too_much):
            continue
        label = ", ".join(f"{key}={_short(value)}" for key, value in settings.items())
        progress(label)
        try:
            plans = plan_config(with_settings(config, settings), topology)
        except ValueError as error:  # sizes that do not divide: not a candidate
            refusal = error
            continue
        worst = max(plans, key=lambda plan: plan.peak)
        tried.append((label, worst))
        if all(plan.fits for plan in plans):
            fitting.append((plans, settings))
        elif not fitting:
            too_much = settings
    if not tried:
        raise PlanError(f"fit: no candidate divides over {topology}; the last refusal was: {refusal}")
    if not fitting:
        return Found(tried, None, {})
    best, settings = max(fitting, key=lambda found: min(plan.tokens_per_second_per_chip or 0 for plan in found[0]))
    return Found(tried, best, settings)


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    """A copy of a config with some of its keys, dotted, at other values."""
    changed = copy.deepcopy(config)
    changed.unlock()
    for key, value in settings.items():
        *path, last = key.split(".")
        place = changed
        for name in path:
            place = place[name]
        place[last] = value
    return changed


def candidates(config: Any, topology: Topology) -> Iterator[dict[str, Any]]:
    """Settings to try, the most promising first; those with fewer rows, then with shorter ones, after all others."""
    in_data = "data" in config
    rows = config.data.batch_size if in_data else config.batch_size
    for shorter in (1, 2) if in_data else (1,):
        for fewer in (1, 2, 4, 8):
            if rows % fewer:
                break
            less: dict[str, Any] = {}
            if fewer > 1:
                less["data.batch_size" if in_data else "batch_size"] = rows // fewer
            if shorter > 1:
                length, samples = max(config.data.buckets)
                less["data.buckets"] = ((length // shorter, samples // shorter),)
            knobs = itertools.product(
                _meshes(topology),
                REMAT_COST if "remat" in config else (None,),
                [m for m in MICROBATCHES if (rows // fewer) % m == 0] if "microbatches" in config else (None,),
            )
            for mesh, remat, microbatches in sorted(knobs, key=lambda knob: _estimate(*knob, rows // fewer)):
                settings: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh.items()}
                if remat is not None:
                    settings["remat"] = remat
                if microbatches is not None:
                    settings["microbatches"] = microbatches
                yield settings | less


def _meshes(topology: Topology) -> list[dict[str, int]]:
    """Tensor and context of small powers of two, fsdp what is left; data spans the slices."""
    each = topology.devices // topology.slices
    sizes = [s for s in (1, 2, 4, 8) if each % s == 0]
    return [
        {"data": topology.slices, "fsdp": each // (tensor * context), "context": context, "tensor": tensor}
        for tensor in sizes
        for context in sizes
        if each % (tensor * context) == 0
    ]


def _estimate(mesh: dict[str, int], remat: str | None, microbatches: int | None, rows: int) -> float:
    """Relative time: the arithmetic done again, more for every split that puts messages on the critical path or gathers
    the weights once more; a row count that does not divide comes last."""
    parts = microbatches or 1
    if rows // parts % (mesh["data"] * mesh["fsdp"]):
        return 100.0
    messages = 0.15 * (mesh["tensor"] - 1) ** 0.5 + 0.10 * (mesh["context"] - 1) ** 0.5 + 0.01 * (parts - 1)
    return 1 + (REMAT_COST[remat] if remat is not None else 0.0) + messages


def _less(settings: dict[str, Any], than: dict[str, Any]) -> bool:
    """Whether settings need less memory than others that did not fit, as far as that can be told: fewer rows a device
    at a time, shorter parts of them, or less saved."""

    def need(s: dict[str, Any]) -> float:
        order = list(REMAT_COST)
        saved = 1.0 / (1 + 2 * order.index(s["remat"])) if s.get("remat") in order else 1.0
        parts = s["mesh.fsdp"] * s["mesh.data"] * s["mesh.context"] * s.get("microbatches", 1)
        return saved * s.get("data.batch_size", 1e6) / parts / s["mesh.tensor"] ** 0.5

    return need(settings) < need(than) or "data.buckets" in settings


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value}".replace(" ", "")
