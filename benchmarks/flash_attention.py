"""Our TPU attention kernels beside the public ones, by the schedules the TPU compiler gives them. No TPU is needed.

    make bench-kernels, or: .venv-tpu/bin/python -m benchmarks.flash_attention [SECTION …]

  peers    cycles per 512 × 512 of visited queries × keys: ours, splash attention, jax's flash attention and tokamax's
           splash attention, each at its best block shape, forward and backward, on v5e, v5p and v6e
  encoder  the same for the encoder's window: head_dim 64, bidirectional, 1,500 frames (the peers pad them to 1,536)
  memory   temporary memory against length

Without a name, all of them. Cycles are the larger of the inner loop's bundles and its matrix units' busy time
(benchmarks/tpu_schedule.py); of variants with and without a mask, the cheaper. "bound" is the matrix units' time with
the products laid out as the peers lay them out; ours needs less where units are 256 wide or head_dim is 64.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.tpu_schedule import UNITS, Run, compile_for, schedule  # before jax

# isort: split
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as jax_flash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as tokamax
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as tokamax_mask

from stepaudio_jax.kernels import flash_attention
from stepaudio_jax.kernels.block_sizes import BlockSizes

console = Console(width=120)
VMEM = {"v5e": 112 * 2**20, "v5p": 56 * 2**20, "v6e": 112 * 2**20}


class Call(NamedTuple):
    """One attention call of a peer or of ours: heads first for the peers, [length, heads, dim] for us."""

    length: int
    dim: int
    causal: bool
    block_q: int
    block_kv: int
    heads: int = 2
    kv_heads: int = 2


def ours(call: Call, backward: bool, vmem: int):
    tile = call.block_q, call.block_kv
    load = max(4096 // call.block_kv, 1) * call.block_kv
    sizes = BlockSizes(*tile, load, *tile, vmem_limit=vmem)
    attend = functools.partial(flash_attention, causal=call.causal, implementation="pallas_tpu", block_sizes=sizes)
    shapes = [(1, call.length, heads, call.dim) for heads in (call.heads, call.kv_heads, call.kv_heads)]
    return attend, shapes, "flash_attention_backward" if backward else "flash_attention_forward"


def at_once(block_kv: int) -> int:
    """Keys that the peers multiply at once: 512 is their best where it divides what they load."""
    return 512 if block_kv % 512 == 0 else block_kv


def peer_blocks(call: Call, backward: bool) -> dict[str, int]:
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    compute = call.block_kv if backward else at_once(call.block_kv)
    return dict(zip(names, (call.block_q, call.block_kv, compute) * 2, strict=True))


def peer_shapes(call: Call) -> list[tuple[int, ...]]:
    return [(heads, call.length, call.dim) for heads in (call.heads, call.kv_heads, call.kv_heads)]


def splash_attention(call: Call, backward: bool, vmem: int):
    mask = (splash_mask.CausalMask if call.causal else splash_mask.FullMask)((call.length, call.length))
    attend = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * call.heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**peer_blocks(call, backward), use_fused_bwd_kernel=True),
    )
    return attend, peer_shapes(call), "dkv" if backward else "fwd"


def tokamax_splash(call: Call, backward: bool, vmem: int):
    mask = (tokamax_mask.CausalMask if call.causal else tokamax_mask.FullMask)((call.length, call.length))
    config = tokamax.SplashConfig(**peer_blocks(call, backward))
    attend = tokamax.make_splash_mha_single_device(mask, config=config)
    return attend, peer_shapes(call), "dkv" if backward else "fwd"


def flash_of_jax(call: Call, backward: bool, vmem: int):
    sizes = jax_flash.BlockSizes(
        block_q=call.block_q, block_k_major=call.block_kv, block_k=at_once(call.block_kv), block_b=1
    )

    def attend(q, k, v):
        return jax_flash.flash_attention(q[None], k[None], v[None], causal=call.causal, block_sizes=sizes)

    return attend, peer_shapes(call), "flash"


PEERS = {"splash": splash_attention, "tokamax splash": tokamax_splash, "jax flash": flash_of_jax}


class Measured(NamedTuple):
    """Cycles per 512 × 512, the spills' share of the stores, the tile."""

    cycles: float
    spills: float
    tile: tuple[int, int]


def runs_of(chip: str, make: Callable, call: Call, backward: bool) -> list[Run]:
    attend, shapes, kernel = make(call, backward, VMEM[chip])
    if backward:
        forward = attend
        attend = jax.grad(lambda q, k, v: forward(q, k, v).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    return schedule(chip, attend, [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes], kernel)


def measure(chip: str, make: Callable, call: Call, backward: bool) -> Measured:
    """The kernel's cheapest complete tile."""
    units = UNITS[chip]
    runs = runs_of(chip, make, call, backward)
    rows = call.block_q
    if make is ours:  # tiles fit themselves to the length and count a group's heads together
        group = call.heads // call.kv_heads
        fitted = BlockSizes(call.block_q, call.block_kv, call.block_kv * 4).fit(call.length, call.length, group)
        rows, call = fitted.block_q * group, call._replace(block_kv=fitted.block_kv)
    area = rows * call.block_kv
    work = (10 if backward else 4) * area * call.dim

    def cycles(run: Run) -> float:
        share = units.flops(run.rows) / work  # of a tile's arithmetic: a kernel may go through its tile in a loop
        return max(run.bundles, units.busy(run.rows)) * (max(1, round(1 / share)) if share < 0.75 else 1)

    most = max(run.rows for run in runs)
    best = min((run for run in runs if run.rows >= 0.9 * most), key=cycles)
    return Measured(cycles(best) * 512**2 / area, best.spills / best.stores, (rows, call.block_kv))


def best(chip: str, make: Callable, calls: list[Call], backward: bool) -> Measured | None:
    """At the best of several tiles; None if none compiles."""
    found = []
    for call in calls:
        try:
            found.append(measure(chip, make, call, backward))
        except Exception as error:  # a shape that this kernel, chip or memory refuses
            refused = str(error).split("\n")[0][:100]
            console.log(f"{chip} {make.__name__} {call.block_q} × {call.block_kv}: {refused}", style="dim")
    return min(found, default=None)


def versus_peers(title: str, chips, peer_calls: list[Call], our_calls: list[Call], bounds: dict[str, tuple]) -> None:
    table = Table(title=title)
    for column in ("chip", "pass", "ours", "tile", "spills", *PEERS, "ratio to the best", "bound"):
        table.add_column(column)
    for chip, backward in track([*itertools.product(chips, (False, True))], title, console=console, transient=True):
        mine = best(chip, ours, our_calls, backward)
        # jax's flash attention goes back in two kernels of seven products: nothing to set beside a fused pass.
        fused = [make if make is not flash_of_jax or not backward else None for make in PEERS.values()]
        peers = [best(chip, make, peer_calls, backward) if make else None for make in fused]
        cells = [f"{p.cycles:.0f} ({p.tile[0]} × {p.tile[1]}, {p.spills:.0%})" if p else "–" for p in peers]
        ratio = mine.cycles / min(p.cycles for p in peers if p)
        what = "backward" if backward else "forward"
        tile = f"{mine.tile[0]} × {mine.tile[1]}"
        bound = f"{bounds[chip][backward]}"
        table.add_row(chip, what, f"{mine.cycles:.0f}", tile, f"{mine.spills:.0%}", *cells, f"{ratio:.3f}", bound)
    console.print(table)


def peers() -> None:
    shapes = [(512, 512), (512, 1024), (512, 2048), (1024, 1024), (1024, 2048)]
    theirs = [Call(8192, 128, True, *shape) for shape in shapes]
    mine = [Call(8192, 128, True, *shape, heads=5, kv_heads=1) for shape in ((1024, 512), (1024, 1024))]
    bounds = {"v5e": (1024, 2560), "v5p": (1024, 2560), "v6e": (512, 1280)}
    versus_peers("Causal, head_dim 128, 8,192 tokens: cycles per 512 × 512 (tile, spills)", UNITS, theirs, mine, bounds)


def encoder() -> None:
    shapes = [(512, 512), (512, 1536), (768, 768), (1536, 512), (1536, 768)]
    theirs = [Call(1536, 64, False, *shape) for shape in shapes]
    mine = [Call(1500, 64, False, *shape) for shape in ((1024, 1024), (1536, 1536), (512, 512))]
    bounds = {"v5e": (1024, 2560), "v5p": (1024, 2560), "v6e": (512, 1280)}
    versus_peers("Bidirectional, head_dim 64, 1,500 frames: cycles per 512 × 512", UNITS, theirs, mine, bounds)


def memory() -> None:
    table = Table(title="Temporary memory of forward and backward, 5 query heads on 1 key head, head_dim 128, MiB")
    sequence = (10_240, 65_536, 131_072, 262_144)
    for column in ("chip", *(f"{length:,}" for length in sequence), "bytes a token, longest"):
        table.add_column(column)
    for chip in UNITS:

        def loss(q, k, v):  # the chip it is compiled for chooses the kernels and their tiles
            return flash_attention(q, k, v, causal=True).astype(jnp.float32).sum()

        gradient = jax.grad(loss, argnums=(0, 1, 2))
        found = []
        for length in sequence:
            shapes = [jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16) for heads in (5, 1, 1)]
            found.append(compile_for(chip, gradient, shapes).memory_analysis().temp_size_in_bytes)
        table.add_row(chip, *(f"{x / 2**20:.0f}" for x in found), f"{found[-1] / sequence[-1]:.0f}")
    console.print(table)


SECTIONS = {f.__name__: f for f in (peers, encoder, memory)}


def run(sections: dict[str, Callable], description: str, by_default: list[str]) -> None:
    """The sections that the command line names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections))
    chosen = parser.parse_args().sections or by_default
    if unknown := set(chosen) - set(sections):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    for name in chosen:
        sections[name]()


if __name__ == "__main__":
    run(SECTIONS, str(__doc__), list(SECTIONS))
