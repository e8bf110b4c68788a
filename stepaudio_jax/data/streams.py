"""Batches from samples that come one after the other, their lengths not known beforehand.

Each process packs its own share of the stream, a buffer of samples at a time. So, unlike the pipeline over stored
data sets (pipeline.py), which records meet in a batch depends on the number of processes, and going on after a stop
reads the epoch again up to where it was. `stepaudio data build` turns a stream into a stored data set.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import numpy as np

from stepaudio_jax.data.examples import Batch, Example
from stepaudio_jax.data.loading import fit, render_sample
from stepaudio_jax.data.packing import pack
from stepaudio_jax.data.permutation import shuffle
from stepaudio_jax.data.pipeline import Collate
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.set_aside import DataError, SetAside, Unusable
from stepaudio_jax.text import Tokenizer

OpenStream = Callable[[int], Iterable[Sample | RecordError]]
"""The samples of an epoch, in the same order at each call; a record that cannot be read as its error."""

logger = logging.getLogger(__name__)


class StreamBatches:
    """An endless iterator of batches, each of this process's rows.

    Attributes: set_aside, the counts of bad records since it was made.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        tokenizer: Tokenizer,
        collate: Collate,
        *,
        row_tokens: int,
        rows: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        buffer: int = 256,
        too_long: str = "truncate",
        max_bad_share: float = 0.01,
        **render_options: Any,
    ):
        """
        Args:
          row_tokens: the length of a row.
          rows: rows of a batch that this process loads.
          process, processes: this one's number, and how many share the stream.
          buffer: samples packed at once, all held in memory: of 20 s of sound each, 256 take 0.3 GB.
          too_long: "truncate" cuts a sample longer than a row; "drop" sets it aside.
          max_bad_share: most of the samples that may be set aside.
          render_options: those of `data.encode`.
        """
        if too_long not in ("truncate", "drop"):
            raise ValueError(f'too_long: expected one of truncate, drop, found "{too_long}"')
        self.set_aside = SetAside(max_bad_share)
        self._processes = processes
        stream = _Stream(
            open_stream,
            lambda sample: self._examples(sample, tokenizer, row_tokens, too_long, render_options),
            collate,
            row_tokens=row_tokens,
            rows=rows,
            seed=seed,
            process=process,
            processes=processes,
            buffer=buffer,
        )
        self._batches = grain.experimental.ThreadPrefetchDatasetIterator(stream, prefetch_buffer_size=1)
        if processes > 1:
            logger.warning(
                "stream: the lengths of its records are not known, so each of the %d processes packs its own share; "
                "the run can only go on with as many. `stepaudio data build` stores the lengths",
                processes,
            )

    def __iter__(self) -> StreamBatches:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """Where this process's next batch begins: {"epoch", "records", "row", "processes"}: its records of the epoch
        before the buffer, and the rows of the buffer before the batch."""
        return dict(self._batches.get_state())

    def restore(self, state: dict[str, Any]):
        """Goes on from a state of this process. Raises DataError if it was saved by another number of processes."""
        if state.get("processes") != self._processes:
            raise DataError(
                f"stream: expected the {state.get('processes')} processes that the run began with, found "
                f"{self._processes}; only a stored data set (`stepaudio data build`) can go on with another number"
            )
        self._batches.set_state(state)

    def close(self):
        """Ends the thread."""
        self._batches.close()

    def _examples(self, sample: Sample | RecordError, tokenizer, row_tokens, too_long, render_options) -> list[Example]:
        """The examples of a sample, none if it is set aside."""
        try:
            if isinstance(sample, RecordError):
                raise Unusable("cannot be read", str(sample))
            examples = render_sample(sample, tokenizer, render_options)
            if too_long == "drop" and (total := sum(example.num_tokens for example in examples)) > row_tokens:
                raise Unusable("too long", f"{sample.where}: {total} tokens, a row holds {row_tokens}")
            examples = fit(examples, row_tokens, sample.where)
        except Unusable as error:
            self.set_aside.bad(error)
            return []
        self.set_aside.good()
        return examples


@dataclasses.dataclass
class _Stream(Iterator[Batch]):
    """The same without a thread of its own, in the form that grain's prefetching takes."""

    open: OpenStream
    load: Callable[[Sample | RecordError], list[Example]]
    collate: Collate
    row_tokens: int
    rows: int
    seed: int
    process: int
    processes: int
    buffer: int

    def __post_init__(self):
        self.set_state({"epoch": 0, "records": 0, "row": 0})

    def get_state(self) -> dict[str, int]:
        return {**self._place, "processes": self.processes}

    def set_state(self, state: dict[str, int]):
        self._place = {name: state[name] for name in ("epoch", "records", "row")}
        self._packed = self._buffers(state["epoch"], state["records"], state["row"])

    def __next__(self) -> Batch:
        rows = []
        for _ in range(self.rows):
            row, self._place = next(self._packed)
            rows.append(row)
        return self.collate(rows)

    def _buffers(self, epoch: int, records: int, row: int) -> Iterator[tuple[list[Example], dict[str, int]]]:
        """Rows, each with the place of the next, from row `row` of the buffer that begins at record `records` on."""
        while True:
            start = self.process + records * self.processes
            samples = itertools.islice(self.open(epoch), start, None, self.processes)
            while buffer := list(itertools.islice(samples, self.buffer)):
                rows = self._pack(buffer, (self.seed, epoch, records, self.process))
                for number in range(row, len(rows)):
                    yield rows[number], {"epoch": epoch, "records": records, "row": number + 1}
                records, row = records + len(buffer), 0
            if not records:
                raise DataError(f"stream: epoch {epoch} has no record for process {self.process}")
            epoch, records = epoch + 1, 0

    def _pack(self, samples: list[Sample | RecordError], seed: tuple[int, ...]) -> list[list[Example]]:
        loaded = [examples for sample in samples if (examples := self.load(sample))]
        lengths = np.array([sum(example.num_tokens for example in examples) for examples in loaded], np.int64)
        rows = shuffle(pack(lengths, self.row_tokens), seed)
        return [[example for item in row for example in loaded[item]] for row in rows]
