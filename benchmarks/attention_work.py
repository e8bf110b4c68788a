"""How much attention work there is: on packed rows, in padded batches, in a train step; and the best tiles for it.

    make bench-kernels, or: .venv-tpu/bin/python -m benchmarks.attention_work [SECTION …]

  packed  what our TPU kernels visit of packed rows and padded batches, beside splash attention, and what that takes
  step    the share of attention in the arithmetic of a 33B train step, its dialogues kept apart or not (minutes)
  search  every tile of ours: what stands in stepaudio_jax/kernels/block_sizes.py was read off here (half an hour)

Without a name, packed and step. Cycles come from the TPU compiler's schedules (benchmarks/tpu_schedule.py).
"""

from __future__ import annotations

import dataclasses
import itertools

from benchmarks.flash_attention import Call, console, ours, run, runs_of  # before jax: sets the compiler's flags
from benchmarks.tpu_schedule import UNITS, compile_for

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track
from rich.table import Table

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch
from stepaudio_jax.kernels.block_sizes import DENSE, PACKED, BlockSizes, Tiles
from stepaudio_jax.kernels.visibility import Visible, block_bounds, visible_keys, visited_blocks
from stepaudio_jax.models import AudioInput, StepAudio
from stepaudio_jax.training.step import StepOptions, TrainState, make_train_step

ROW = 10_240


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
    state = TrainState(params, {}, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    ints = np.zeros((1, ROW), np.int32)
    units = np.zeros((1, 313), np.int32)
    audio = AudioInput(np.zeros((1, 313 * 1_280), np.float32), units, units, ints)
    batch = Batch(ints, ints, ints, ints.astype(bool), ints, audio)
    train = make_train_step(graphdef, optimizer, StepOptions(scan_layers=False, compute_dtype=jnp.bfloat16))
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


if __name__ == "__main__":
    run({f.__name__: f for f in (packed, step, search)}, str(__doc__), ["packed", "step"])
