"""The data pipeline over a stored data set: planning and packing, beside grain's packers; loading; going on far away.

    .venv/bin/python -m benchmarks.data_pipeline FOLDER [--row-tokens 10240] [--batch-rows 8] [--batches 40] [--threads 4]

FOLDER is what `stepaudio data build` wrote, its lengths measured with the tokenizer "tiny". The packers get the same
lengths: ours from the columns, grain's from arrays of as many tokens, which they copy into the rows as they go, so their
rate is that of packing and copying. Loading is measured from the first batch after the one that fills the buffers, to
rows of examples: read, decoded, rendered, cut, checked, not yet laid side by side. Memory is the peak of the process,
imports included.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import grain
import numpy as np
from rich.console import Console
from rich.table import Table

from stepaudio_jax.checkpoints import resolve
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
    next(batches)
    tokens = sound = 0.0
    start = time.perf_counter()
    for _ in range(number):
        examples = [example for row in next(batches) for example in row]
        tokens += sum(example.num_tokens for example in examples)
        sound += sum(len(chunk) for example in examples for chunk in example.chunks) / 16_000
    seconds = time.perf_counter() - start
    yield "batches a second", f"{number / seconds:.2f}"
    yield "tokens a second", f"{tokens / seconds:,.0f}"
    yield "sound, × real time", f"{sound / seconds:,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--row-tokens", type=int, default=10_240)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()

    tokenizer, sha256 = Tokenizer.load(resolve("tiny")), tokenizer_sha256("tiny")
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    dataset = StoredDataset(args.folder)
    mixture = Mixture([Source("all", dataset)], row_tokens=args.row_tokens)
    options = {"batch_rows": args.batch_rows, "threads": args.threads, "seed": 0}
    batches = PackedBatches(mixture, tokenizer, sha256, lambda rows: rows, **options)  # type: ignore[arg-type]
    next(batches)
    first = time.perf_counter() - start
    rates = list(loading(batches, args.batches))
    batches.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    table = Table(title=f"{len(dataset):,} records, rows of {args.row_tokens:,} tokens, {args.threads} threads")
    table.add_column()
    table.add_column(justify="right")
    found = {"ours": planning(mixture)} | {name: peer(packer, mixture) for name, packer in PEERS.items()}
    for name, (fullness, rate) in found.items():
        table.add_row(f"rows full, {name}", f"{fullness:.2%}")
        table.add_row(f"records packed a CPU second, {name}", f"{rate:,.0f}")
    table.add_row("going on in the tenth epoch", f"{going_on(mixture):.3f} s")
    table.add_row(f"the first batch of {args.batch_rows} rows, opening included", f"{first:.2f} s")
    for name, value in rates:
        table.add_row(name, value)
    table.add_row("memory, of which imports", f"{peak / 1e6:.2f} GB, {imported / 1e6:.2f} GB")
    table.add_row("records set aside", str(batches.set_aside.total))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
