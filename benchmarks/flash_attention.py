"""Our TPU attention kernels beside the public ones, by the schedules the TPU compiler gives them. No TPU is needed.

    make bench-kernels, or: .venv-tpu/bin/python -m benchmarks.flash_attention [SECTION …]

  peers    cycles per 512 × 512 of visited queries × keys: ours, splash attention, jax's flash attention and tokamax's
           splash attention, each at its best block shape, forward and backward, on v5e, v5p and v6e
  encoder  the same for the encoder's window: head_dim 64, bidirectional, 1,500 frames (the peers pad them to 1,536)
  packed   what is visited on packed rows and padded batches, beside splash attention, and what that takes
  memory   temporary memory against length
  step     the share of attention in the arithmetic of a 33B train step, its dialogues kept apart or not
  search   every block shape of ours: what stands in stepaudio_jax/kernels/block_sizes.py was read off here (long)

Without a name, all but the search. Cycles are the larger of the inner loop's bundles and its matrix units' busy time
(benchmarks/tpu_schedule.py); of variants with and without a mask, the cheaper. "bound" is the matrix units' time with
the products laid out as the peers lay them out; ours needs less where units are 256 wide or head_dim is 64.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.tpu_schedule import UNITS, Run, compile_for, schedule  # before jax

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental.pallas.ops.tpu import flash_attention as jax_flash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as tokamax
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as tokamax_mask

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch
from stepaudio_jax.kernels import flash_attention
from stepaudio_jax.kernels.block_sizes import DENSE, PACKED, BlockSizes, Tiles
from stepaudio_jax.kernels.visibility import Visible, block_bounds, visible_keys, visited_blocks
from stepaudio_jax.models import AudioInput, StepAudio
from stepaudio_jax.training.step import TrainState, make_train_step

console = Console(width=120)
ROW = 10_240
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
    attend = functools.partial(
        flash_attention, causal=call.causal, implementation="pallas_tpu", block_sizes=sizes
    )
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


def dialogues(seed: int, kind: str) -> np.ndarray:
    """Segment ids of 16 dialogues that share a row of 10,240 tokens."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 1.8, 16) if kind == "uniform" else rng.exponential(1.0, 16)
    tokens = np.floor(weights / weights.sum() * ROW).astype(int)
    ids = np.repeat(np.arange(1, 17), tokens)
    return np.pad(ids, (0, ROW - len(ids)))[None]


def estimate(chip: str, tiles: Tiles, visible: list[Visible], group: int, dim: int) -> tuple[float, float]:
    """Thousands of cycles of one head, forward and backward, over whole rows: every stretch of the schedule times how
    often it runs, and 250 cycles for each step of a grid."""
    kv_heads = 1
    runs = {}
    for backward in (False, True):
        call = Call(ROW, dim, True, *(tiles.backward if backward else tiles.forward), group, kv_heads)
        runs[backward] = [max(r.bundles, UNITS[chip].busy(r.rows)) for r in runs_of(chip, ours, call, backward)]
    sizes = BlockSizes(*tiles.forward, tiles.forward[1] * 8, *tiles.backward).fit(ROW, ROW, group)
    score, advance_full, advance_masked, *_, accumulate = runs[False]
    full_tile, masked_tile = runs[True][:2]
    totals = []
    for seen in visible:
        tiles_, full = (x.astype(int) for x in blocks_of(seen, sizes.block_q, sizes.block_kv))
        full_steps = np.minimum(full, np.maximum(tiles_ - 1, 0))
        steps = np.where(tiles_ > 0, score + accumulate, 0) + full_steps * advance_full
        steps = steps + np.maximum(tiles_ - 1 - full_steps, 0) * advance_masked + 250
        tiles_, full = blocks_of(seen, sizes.block_q_backward, sizes.block_kv_backward)
        walk = -(-ROW // sizes.block_kv_backward) * (250 + 4 * sizes.block_kv_backward)  # dk and dv in and out
        totals.append((steps.sum(), ((tiles_ - full) * masked_tile + full * full_tile).sum() + walk))
    return tuple(np.mean(totals, 0) / 1e3 / group)


def blocks_of(visible: Visible, block_q: int, block_kv: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each tile of queries: how many blocks of keys it visits, and how many of them without a mask."""
    start, stop, full_start, full_stop = (np.asarray(x)[0] for x in block_bounds(visible, block_q))
    visits = -(-stop // block_kv) - start // block_kv
    return visits, np.maximum(full_stop // block_kv - -(-full_start // block_kv), 0)


def packed() -> None:
    dense = visible_keys(1, ROW, ROW, causal=True)
    causal = sum(i + 1 for i in range(ROW // 512)) * 512**2  # every block of 512 × 512 that the static mask leaves
    table = Table(title="16 dialogues in 10,240 tokens, a group of 5 heads: area visited, of splash's")
    for column in ("lengths", "must be seen", *(f"{chip} forward, backward" for chip in UNITS)):
        table.add_column(column)
    rows = {}
    for kind in ("uniform", "exponential"):
        rows[kind] = []
        for seed in range(10):
            ids = dialogues(seed, kind)
            rows[kind].append(visible_keys(1, ROW, ROW, causal=True, q_segment_ids=ids, kv_segment_ids=ids))
        must = np.mean([int((v.stop - v.start).sum()) for v in rows[kind]]) / causal
        cells = []
        for chip in UNITS:
            sizes = BlockSizes(*PACKED[chip, 128].forward, 4096, *PACKED[chip, 128].backward).fit(ROW, ROW, 5)
            shapes = (sizes.block_q, sizes.block_kv), (sizes.block_q_backward, sizes.block_kv_backward)
            shares = [
                [int(visited_blocks(v, *shape)) * shape[0] * shape[1] / causal for v in rows[kind]] for shape in shapes
            ]
            cells.append(", ".join(f"{np.mean(x):.3f} (at most {max(x):.3f})" for x in shares))
        table.add_row(kind, f"{must:.3f}", *cells)
    console.print(table)

    table = Table(title="Thousands of cycles a head for such a row, forward + backward")
    for column in ("chip", "not packed (causal)", "uniform dialogues", "times less"):
        table.add_column(column)
    for chip in UNITS:
        alone = estimate(chip, DENSE[chip, 128], [dense], 5, 128)
        together = estimate(chip, PACKED[chip, 128], rows["uniform"], 5, 128)
        text = [f"{a:.0f} + {b:.0f}" for a, b in (alone, together)]
        table.add_row(chip, *text, f"{sum(alone) / sum(together):.1f}")
    console.print(table)

    seconds = np.array([1, 2, 5, 10, 15, 20, 25])
    frames = lengths.conv_frames(seconds * 16_000)
    ids = (np.arange(frames[-1]) < frames[:, None]).astype(np.int32)
    seen = visible_keys(len(ids), ids.shape[1], ids.shape[1], causal=False, q_segment_ids=ids, kv_segment_ids=ids)
    sizes = BlockSizes(*PACKED["v6e", 64].forward, 4096).fit(ids.shape[1], ids.shape[1], 1)
    table = Table(title=f"Encoder batch: tiles of {sizes.block_q} × {sizes.block_kv} visited")
    for column in ("clip, s", "frames", "tiles", "area visited / frames²"):
        table.add_column(column)
    for i, (second, frame) in enumerate(zip(seconds, frames, strict=True)):
        one = Visible(*(x[i : i + 1] for x in seen))
        count = int(visited_blocks(one, sizes.block_q, sizes.block_kv))
        area = count * sizes.block_q * sizes.block_kv
        table.add_row(str(second), str(frame), str(count), f"{area / frame**2:.2f}")
    console.print(table)


def memory() -> None:
    table = Table(title="Temporary memory of forward and backward, 5 query heads on 1 key head, head_dim 128, MiB")
    sequence = (10_240, 65_536, 131_072, 262_144)
    for column in ("chip", *(f"{length:,}" for length in sequence), "bytes a token, longest"):
        table.add_column(column)
    for chip in UNITS:
        sizes = BlockSizes(*DENSE[chip, 128].forward, 4096, *DENSE[chip, 128].backward, vmem_limit=VMEM[chip])
        attend = functools.partial(flash_attention, causal=True, implementation="pallas_tpu", block_sizes=sizes)
        gradient = jax.grad(lambda q, k, v, f=attend: f(q, k, v).astype(jnp.float32).sum(), argnums=(0, 1, 2))
        found = []
        for length in sequence:
            shapes = [jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16) for heads in (5, 1, 1)]
            found.append(compile_for(chip, gradient, shapes).memory_analysis().temp_size_in_bytes)
        table.add_row(chip, *(f"{x / 2**20:.0f}" for x in found), f"{found[-1] / sequence[-1]:.0f}")
    console.print(table)


def step() -> None:
    """The rest's arithmetic is what the compiler counts in the step of one layer and of two; kernels it does not count:
    theirs is the area they visit, four products' worth forward and ten backward."""
    config = StepAudioConfig.preset("33b")
    layers, heads, dim = (
        getattr(config.decoder, name) for name in ("num_hidden_layers", "num_attention_heads", "head_dim")
    )
    one, two = (step_flops(config, n) for n in (1, 2))
    rest = one + (layers - 1) * (two - one)
    tiles = PACKED["v5p", dim]
    sizes = BlockSizes(*tiles.forward, 4096, *tiles.backward)
    sizes = sizes.fit(ROW, ROW, heads // config.decoder.num_key_value_heads)
    ids = dialogues(0, "uniform")
    table = Table(title="A 33B train step (no rematerialisation), one row of 10,240 tokens, PFLOP")
    for column in ("dialogues", "attention", "all else", "attention's share"):
        table.add_column(column)
    for name, segments in (("apart: 16 in a row", ids), ("not told apart: causal over the row", None)):
        seen = visible_keys(1, ROW, ROW, causal=True, q_segment_ids=segments, kv_segment_ids=segments)
        area = [
            products * int(visited_blocks(seen, *shape)) * shape[0] * shape[1]
            for products, shape in (
                (4, (sizes.block_q, sizes.block_kv)),
                (10, (sizes.block_q_backward, sizes.block_kv_backward)),
            )
        ]
        attention = sum(area) * dim * heads * layers
        share = f"{attention / (attention + rest):.1%}"
        table.add_row(name, f"{attention / 1e15:.3f}", f"{rest / 1e15:.2f}", share)
    console.print(table)


def step_flops(config: StepAudioConfig, layers: int) -> float:
    """What the compiler counts in a train step of so many decoder layers (and one of the encoder's) at full width."""
    config = dataclasses.replace(
        config,
        text_config=dataclasses.replace(config.decoder, num_hidden_layers=layers),
        audio_encoder_config=dataclasses.replace(config.audio, n_audio_layer=1),
    )
    model = nnx.eval_shape(lambda: StepAudio(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    optimizer = optax.adamw(1e-5)
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    ints = np.zeros((1, ROW), np.int32)
    audio = AudioInput(np.zeros((1, 16_000 * 25), np.float32), np.zeros(1, np.int32), ints)
    batch = Batch(ints, ints, ints, ints.astype(bool), audio)
    train = make_train_step(graphdef, optimizer, scan_layers=False, compute_dtype=jnp.bfloat16)
    return compile_for("v5p", train, (state, batch)).cost_analysis()["flops"]


def search() -> None:
    table = Table(title="Every tile: thousands of cycles a head, 10,240 tokens, forward / backward")
    for column in ("chip", "head_dim", "rows × keys", "dense", "packed"):
        table.add_column(column)
    dense = [visible_keys(1, ROW, ROW, causal=True)]
    rows = []
    for seed in range(5):
        ids = dialogues(seed, "uniform")
        rows.append(visible_keys(1, ROW, ROW, causal=True, q_segment_ids=ids, kv_segment_ids=ids))
    shapes = [*itertools.product((512, 1024), (128, 256, 512, 1024))]
    cases = [*itertools.product(UNITS, ((128, 5), (64, 1)), shapes)]
    for chip, (dim, group), shape in track(cases, "search", console=console, transient=True):
        try:
            cells = [estimate(chip, Tiles(shape, shape), visible, group, dim) for visible in (dense, rows)]
        except Exception as error:
            table.add_row(chip, str(dim), f"{shape[0]} × {shape[1]}", str(error).split("\n")[0][:60])
            continue
        table.add_row(chip, str(dim), f"{shape[0]} × {shape[1]}", *(f"{a:.0f} / {b:.0f}" for a, b in cells))
    console.print(table)


SECTIONS = {f.__name__: f for f in (peers, encoder, packed, memory, step, search)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    chosen = parser.parse_args().sections or [name for name in SECTIONS if name != "search"]
    unknown = set(chosen) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in chosen:
        SECTIONS[name]()
