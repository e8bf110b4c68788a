"""Does the real 33B fit real pods, and what limits it: every slice people ask about, compiled here without a TPU.

One row a plan, by the TPU compiler's own account; the floors are datasheet arithmetic, not measurements.

Run: make plans    (or python -m benchmarks.plans NAME…, in an environment with libtpu; some twenty minutes)
"""

from __future__ import annotations

import datetime
import sys
from importlib.metadata import version
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from stepaudio_jax.parallel.chips import GIB, parse_topology
from stepaudio_jax.plan import Plan, plan_config
from stepaudio_jax.plan.search import with_settings
from stepaudio_jax.training import read_config


class Case(NamedTuple):
    """A config with some settings, on a topology."""

    config: str
    topology: str
    settings: dict[str, Any]
    slices: int = 1
    program: str | None = None


PLAIN = {"data.buckets": ((10_240, 0),), "data.batch_size": 64, "microbatches": 1, "remat": "full"}
LONG = {"data.buckets": ((131_072, 131_072 * 1_280),), "data.batch_size": 8, "microbatches": 1}
PROMPT = {"batch_size": 1, "cache_length": 135_168}

CASES = {
    "sft-v5p-64": Case("sft_33b", "v5p:4x4x4", {}),
    "sft-v5p-64, 64 rows": Case("sft_33b", "v5p:4x4x4", {"data.batch_size": 64, "microbatches": 1}),
    "sft-v6e-256": Case("sft_33b", "v6e:16x16", {"microbatches": 1, "remat": "attention", "mesh.context": 2}),
    "sft-v5e-256": Case(
        "sft_33b", "v5e:16x16", {"data.batch_size": 64, "microbatches": 1, "remat": "attention", "mesh.context": 4}
    ),
    "sft-tpu7x-64": Case("sft_33b", "tpu7x:4x4x4", {"data.batch_size": 256}),
    "sft-131k-v5p-128": Case("sft_33b", "v5p:4x4x8", LONG | {"mesh.context": 16, "remat": "attention"}),
    "mid-training-2x-v5p-64": Case("mid_training_33b", "v5p:4x4x4", {"mesh.data": 2, "data.batch_size": 256}, slices=2),
    "lora-v5p-8": Case("lora_33b", "v5p:2x2x2", {}),
    "lora-v6e-8": Case("lora_33b", "v6e:2x4", {"remat": "full"}),
    "dpo-v5p-64": Case("dpo_33b", "v5p:4x4x4", {}),
    "rlvr-v5p-128": Case("rlvr_33b", "v5p:4x4x8", {}),
    "rlhf-v5p-128": Case("rlhf_33b", "v5p:4x4x8", {}),
    "rlhf-v5p-128, judge beside": Case(
        "rlhf_33b", "v5p:4x4x8", {"reward_model.judge": "checkpoint", "rl.rows": 32}
    ),
    "serve-v6e-8": Case("serve_33b", "v6e:2x4", {}),
    "serve-v5p-4": Case("serve_33b", "v5p:2x2x1", {}),
    "prefill-135k-v5p-8": Case("serve_33b", "v5p:2x2x2", PROMPT, program="prefill"),
    "plain-4096-v5p-64": Case("sft_33b", "v5p:4x4x4", PLAIN | {"data.buckets": ((4_096, 0),)}),
    "plain-10240-v5p-64": Case("sft_33b", "v5p:4x4x4", PLAIN),
    "sft-8b-v5p-16": Case("sft_8b", "v5p:2x2x4", {}),
    "mid-training-8b-v6e-32": Case("mid_training_8b", "v6e:4x8", {}),
    "lora-8b-v6e-8": Case("lora_8b", "v6e:2x4", {}),
    "serve-8b-v6e-4": Case("serve_8b", "v6e:2x2", {}),
}


def main(names: list[str]) -> int:
    console, errors = Console(highlight=False, width=210), Console(stderr=True)
    if unknown := [name for name in names if name not in CASES]:
        errors.print(f"plans: expected some of {', '.join(CASES)}, found {unknown[0]}")
        return 2
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    table = Table(title=f"Plans, {datetime.date.today()}, {versions}; GiB a device, floors in seconds")
    columns = ("plan", "program", "mesh", "state", "activ.", "temp.", "peak", "of", "spare", "recompute",
               "arithm.", "memory", "interc.", "tokens/s/chip at the floor", "compile")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("plan", "program", "mesh") else "right")
    all_fit = True
    for name in names or CASES:
        case = CASES[name]
        config = with_settings(read_config(f"configs/{case.config}.py"), case.settings)
        with errors.status(name):
            plans = plan_config(config, parse_topology(case.topology, case.slices), only=case.program)
        for plan in plans:
            all_fit &= bool(plan.fits)
            table.add_row(*row(name, plan))
            errors.print(f"{name}, {plan.program}: {', '.join(plan.in_loops) or 'no collectives in loops'}")
    console.print(table)
    return 0 if all_fit else 1


def row(name: str, plan: Plan) -> list[str]:
    mesh = " ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    state = sum(plan.groups.values())
    sizes = [f"{size / GIB:.2f}" for size in (state, plan.activations, plan.temporaries, plan.peak)]
    capacity = plan.capacity or float("nan")
    interconnect = plan.floors.get("interconnect", 0.0) + plan.floors.get("network", 0.0)
    floors = [plan.floors.get("arithmetic", 0.0), plan.floors.get("memory", 0.0), interconnect]
    return [
        name,
        f"{plan.program}: {plan.about}",
        mesh,
        *sizes,
        f"{capacity / GIB:.2f}",
        f"{1 - plan.peak / capacity:.0%}",
        f"{plan.recompute:.3f}",
        *(f"{seconds:.4g}" for seconds in floors),
        f"{plan.tokens_per_second_per_chip or 0:,.0f}",
        f"{plan.compile_seconds:.0f} s",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
