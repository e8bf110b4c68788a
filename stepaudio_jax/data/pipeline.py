"""The batches of a run over stored data sets: rows planned for all hosts together, loaded by threads ahead of the step.

Batch s holds rows s·B to (s+1)·B of the plan (plan.py), running on into the next epoch, so what a step sees follows
from (seed, step) alone. A process loads the rows of a batch that it is told to, and any number of processes together
load the same batches; how far a run has come is the place of the next row, the same for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain

from stepaudio_jax.data.examples import Batch, Example
from stepaudio_jax.data.loading import Loader, check_lengths
from stepaudio_jax.data.mixture import Mixture
from stepaudio_jax.data.plan import START, WINDOW, Place, RowPlan, Rows
from stepaudio_jax.data.set_aside import DataError, SetAside
from stepaudio_jax.text import Tokenizer

Collate = Callable[[list[list[Example]]], Batch]
"""Lays the examples of each row into one array. The better and the worse reply of a preference follow each other."""

ENDLESS = 1 << 60


class PackedBatches:
    """An endless iterator of batches, each of the rows this process loads.

    Attributes: set_aside, the counts of bad records since it was made.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Tokenizer,
        tokenizer_sha256: str,
        collate: Collate,
        *,
        batch_rows: int,
        seed: int,
        rows: Sequence[int] | None = None,
        window: int = WINDOW,
        threads: int = 8,
        max_bad_share: float = 0.01,
        **render_options: Any,
    ):
        """
        Args:
          tokenizer_sha256: lengths.tokenizer_sha256 of the folder the tokenizer is from.
          batch_rows: rows of a batch over all processes.
          rows: which of them (0 to batch_rows - 1) this process loads, in the order `collate` takes them; None for all.
          window: records packed at once (plan.RowPlan).
          threads: rows loaded side by side.
          max_bad_share: most of the records that may be set aside.
          render_options: those of `data.encode`.

        Raises:
          ValueError: rows that are not among the batch's.
          DataError: a data set whose lengths were stored with another tokenizer or template; and from `next`, too
            many bad records.
        """
        own = list(range(batch_rows)) if rows is None else list(rows)
        if not own or not set(own) <= set(range(batch_rows)):
            raise ValueError(f"rows: expected some of the {batch_rows} rows of a batch, found {own}")
        check_lengths(mixture, tokenizer_sha256, render_options)
        self.set_aside = SetAside(max_bad_share)
        self._plan = RowPlan(mixture, seed=seed, window=window)
        self._loader = Loader(mixture, tokenizer, render_options, self.set_aside)
        self._collate = collate
        self._batch_rows, self._rows = batch_rows, own
        self._threads = threads
        self._start(START)

    def __iter__(self) -> PackedBatches:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where the next batch begins: {"epoch", "window", "row", "plan"}, the row counted in its window."""
        place = self._planned.place(self._step * self._batch_rows)
        return {**place._asdict(), "plan": self.fingerprint}

    def restore(self, state: Mapping[str, Any]):
        """Goes on from a state, of whatever number of processes.

        Raises:
          DataError: the state is of another mixture, data set, seed or window size.
        """
        if state.get("plan") != self.fingerprint:
            raise DataError(
                f"data: expected the plan of rows that the run began with ({state.get('plan')}), found another one "
                f"({self.fingerprint}): a data set, the mixture, the row length or the seed has changed; "
                "restore what was, or start a new run"
            )
        self.close()
        self._start(Place(state["epoch"], state["window"], state["row"]))

    @functools.cached_property
    def fingerprint(self) -> str:
        return self._plan.fingerprint()

    @property
    def fullness(self) -> float:
        """The share of tokens in the rows planned since the start or the last restore, the rest being padding."""
        return self._planned.fullness

    def close(self):
        """Ends the threads."""
        self._batches.close()

    def _start(self, place: Place):
        self._step = 0
        self._planned = Rows(self._plan, place)
        own = len(self._rows)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(self._threads, own))
        loaded = grain.MapDataset.range(ENDLESS).map(self._load).to_iter_dataset(options)
        batches = loaded.batch(own, batch_fn=lambda rows: self._collate(list(rows)))
        self._batches = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))

    def _load(self, number: int) -> list[Example]:
        """The row that this process loads as its `number`-th."""
        step, own = divmod(int(number), len(self._rows))
        return self._loader.row(self._planned[step * self._batch_rows + self._rows[own]])
