"""The data pipeline over a stored data set: packing beside grain's packers, loading, going on far away.

    .venv/bin/python -m benchmarks.data_pipeline [--records 100000] [--batches 40] [--folder DIR] [--quick]

Rows of 10,240 tokens in batches of 8, of the synthetic data set that `stepaudio data build` stores first. The packers
get the same lengths: ours from the columns, grain's from arrays of as many tokens, which they copy into the rows as
they go, so their rate is that of packing and copying. CPU seconds are the process's own, which other work on the
machine changes least. Loading is measured after the batch that fills the buffers, and takes all it needs: reading,
decoding, rendering, checks, and laying tokens and sound into the arrays of a step. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import functools
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.synthetic_data import write_synthetic
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.checkpoints import resolve
from stepaudio_jax.data import collate
from stepaudio_jax.data.build import Recipe, build
from stepaudio_jax.data.lengths import tokenizer_sha256
from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.pipeline import PackedBatches
from stepaudio_jax.data.plan import Place, RowPlan, Rows
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.text import Tokenizer

PEERS = {
    "grain first fit": grain.experimental.FirstFitPackIterDataset,
    "grain best fit": grain.experimental.BestFitPackIterDataset,
}
BINS = 256
ROW_TOKENS, BATCH_ROWS = 10_240, 8


def planning(mixture: Mixture) -> tuple[float, float]:
    """Fullness of an epoch's rows, and records planned a second of the CPU."""
    plan = RowPlan(mixture, seed=0)
    start = time.process_time()
    windows = [plan.window(0, number) for number in range(plan.windows)]
    seconds = time.process_time() - start
    rows, tokens = sum(len(window.rows) for window in windows), sum(window.tokens for window in windows)
    return tokens / rows / mixture.row_tokens, sum(len(window.records) for window in windows) / seconds


def peer(packer, mixture: Mixture) -> tuple[float, float]:
    """The same of one of grain's packers, the records in the order of an epoch."""
    lengths = mixture.lengths(*mixture.order(0, 0))
    arrays = grain.MapDataset.source(lengths.tolist()).map(lambda n: {"tokens": np.ones(n, np.int32)})
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    structure = {"tokens": mixture.row_tokens}
    packed = packer(arrays.to_iter_dataset(options), length_struct=structure, num_packing_bins=BINS)
    start = time.process_time()
    rows = sum(1 for _ in packed)
    return lengths.sum() / rows / mixture.row_tokens, len(lengths) / (time.process_time() - start)


def going_on(mixture: Mixture) -> float:
    """Seconds to find the first row of the last window of the tenth epoch, as a run that goes on from there does."""
    start = time.perf_counter()
    plan = RowPlan(mixture, seed=0)
    Rows(plan, Place(9, plan.windows - 1, 0))[0]
    return time.perf_counter() - start


def loading(batches: PackedBatches, number: int) -> Iterator[tuple[str, str]]:
    """Rates over so many batches."""
    tokens = sound = 0.0
    start, used = time.perf_counter(), time.process_time()
    for _ in range(number):
        batch = next(batches)
        tokens += np.count_nonzero(batch.segment_ids)
        assert batch.audio is not None
        sound += np.count_nonzero(batch.audio.slots >= 0) * 0.08  # an audio token is 80 ms
    seconds, used = time.perf_counter() - start, time.process_time() - used
    yield "batches a second", f"{number / seconds:.2f}"
    yield "tokens a second", f"{tokens / seconds:,.0f}"
    yield "sound, × real time", f"{sound / seconds:,.0f}"
    yield "sound, × real time, a CPU second", f"{sound / used:,.0f}"


def measure(folder: Path, number: int, threads: int) -> Iterator[tuple[str, str]]:
    """The rows of the table."""
    tokenizer, sha256 = Tokenizer.load(resolve("tiny")), tokenizer_sha256(resolve("tiny"))
    start = time.perf_counter()
    mixture = Mixture([Source("all", StoredDataset(folder))], row_tokens=ROW_TOKENS)
    lay = functools.partial(collate, length=ROW_TOKENS, sound_rows=BATCH_ROWS, sound_samples=ROW_TOKENS * UNIT_SAMPLES)
    batches = PackedBatches(mixture, tokenizer, sha256, lay, batch_rows=BATCH_ROWS, seed=0, threads=threads)
    next(batches)
    yield "the first batch, opening the set included", f"{time.perf_counter() - start:.2f} s"
    yield from loading(batches, number)
    batches.close()
    yield "records set aside", str(batches.set_aside.total)
    yield "memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
    yield "going on from the end of the tenth epoch", f"{going_on(mixture):.3f} s"
    for name, (fullness, rate) in [("ours", planning(mixture)), *((n, peer(p, mixture)) for n, p in PEERS.items())]:
        yield f"rows full, {name}", f"{fullness:.2%}"
        yield f"records packed a CPU second, {name}", f"{rate:,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--folder", help="where to work; by default a temporary folder")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="2,000 records, two batches: does it run at all")
    args = parser.parse_args()
    records, number = (2000, 2) if args.quick else (args.records, args.batches)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = write_synthetic(Path(name) / "source", records), Path(name) / "stored"
        build([source], out, Recipe(str(resolve("tiny"))))
        table = Table(title=f"{records:,} records, rows of {ROW_TOKENS:,} tokens, {args.threads} threads")
        table.add_column()
        table.add_column(justify="right")
        for row in measure(out, number, args.threads):
            table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
