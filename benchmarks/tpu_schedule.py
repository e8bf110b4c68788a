"""The instruction schedule that the real TPU compiler gives a kernel, read on a machine without a TPU.

libtpu compiles for a named topology and, asked to, writes each kernel's final schedule: one line a bundle, the
instructions that issue in one cycle. The schedule is cut at branches and loop marks into straight runs; those that hold
the matrix products are the kernel's inner loop. A run's bundles are a lower bound of its cycles (waiting for memory is
not in it), and so is the time its products keep the matrix units busy; the larger of the two compares kernels that were
compiled in one process. It is not a time.

Import this before jax: the compiler reads its flags once.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="tpu_schedule_"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)  # it grows to gigabytes
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a kill, too, ends by way of it, as ctrl-C does
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ["LIBTPU_INIT_ARGS"] = (
    f"{os.environ.get('LIBTPU_INIT_ARGS', '')} --xla_jf_dump_to={FOLDER} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_html=false --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_static_gaps=true"
).strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v4": "v4:2x2x1"}


@dataclasses.dataclass(frozen=True)
class MatrixUnits:
    """Of one TensorCore. A product instruction streams rows past `edge` × `edge` numbers that the unit holds."""

    units: int
    edge: int
    rows_per_cycle: int

    def busy(self, rows: int) -> float:
        """Cycles in which the units stream so many rows."""
        return rows / self.rows_per_cycle / self.units

    def flops(self, rows: int) -> float:
        """What they could do meanwhile."""
        return rows * 2 * self.edge**2


UNITS = {"v5e": MatrixUnits(4, 128, 1), "v5p": MatrixUnits(4, 128, 1), "v6e": MatrixUnits(2, 256, 2)}


@dataclasses.dataclass(frozen=True)
class Run:
    """A straight run of the schedule."""

    bundles: int
    rows: int
    """Rows streamed through the matrix units."""
    stores: int
    spills: int
    """Stores of a register that ran out of registers to be in."""


_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|\d+)\s+(LH|LB|LE|PB|PF|CT)?\s*:")
_PRODUCT = re.compile(r"\bvmatmul\.(?:mubr\.|subr\.)?([a-z0-9]+)")


def _runs(text: str) -> list[Run]:
    found, count, after_branch = [], Counter(), False
    for line in text.splitlines():
        mark = _BUNDLE.match(line)
        if not mark:
            continue
        if (after_branch or mark[1]) and count:
            found.append(count)
            count = Counter()
        count["bundles"] += 1
        # A register holds 16 rows of bfloat16; the form that loads, multiplies and reduces streams 8, as float32 does.
        for kind in _PRODUCT.findall(line):
            count["rows"] += 16 if kind == "bf16" else 8
        count["stores"] += len(re.findall(r"= vst\b", line))
        count["spills"] += len(re.findall(r"= vst \[vmem:\[#allocation\d+_spill\]", line))
        after_branch = bool(re.search(r"\bsbr\.", line))
    return [Run(c["bundles"], c["rows"], c["stores"], c["spills"]) for c in [*found, count]]


def compile_for(chip: str, fn, args) -> jax.stages.Compiled:
    """`fn` compiled for one core of a chip; `args` are `jax.ShapeDtypeStruct`."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    mesh = jax.sharding.Mesh(np.array([device]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):  # from which implementations and tile sizes are chosen
        return jax.jit(fn).lower(*args).compile()


def schedule(chip: str, fn, args, kernel: str) -> list[Run]:
    """The runs with products of the kernel whose name matches `kernel`, which `fn` calls.

    Raises:
      LookupError: no such kernel was compiled.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    compile_for(chip, fn, args)
    for path in sorted(FOLDER.glob("*-final_bundles.txt")):
        label = re.sub(r"^\d+-|-\d+-final_bundles\.txt$", "", path.name)
        if re.search(kernel, label) and "analysis" not in path.name:
            return [run for run in _runs(path.read_text()) if run.rows]
    raise LookupError(f"no kernel matching {kernel!r} was compiled for {chip}")
