"""The plan of a run: which records stand in which row of fixed length, for all hosts together.

An epoch's order (mixture.py) is cut into windows of records; each window is packed into rows by itself (packing.py),
and its rows are shuffled. A window is a pure function of (seed, epoch, mixture, record lengths, window size): every
host plans the same rows, whichever of them it loads, and a run goes on from any place without planning all before it.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Int

from stepaudio_jax.data.mixture import Mixture
from stepaudio_jax.data.packing import pack
from stepaudio_jax.data.permutation import shuffle

WINDOW = 16_384
"""Records packed at once: enough that only one row in hundreds is left with room, planned in a few hundredths of a
second."""


class Place(NamedTuple):
    """A row of the plan: its epoch, its window in the epoch, and its number in the window."""

    epoch: int
    window: int
    row: int


START = Place(0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Window:
    """Attributes: sources and records, what each item is; rows, the items of each row; tokens, of all together."""

    sources: Int[np.ndarray, " N"]
    records: Int[np.ndarray, " N"]
    rows: list[list[int]]
    tokens: int

    def row(self, number: int) -> list[tuple[int, int]]:
        """(source, record) of a row."""
        return [(int(self.sources[item]), int(self.records[item])) for item in self.rows[number]]


class RowPlan:
    """Attributes: windows, their number in an epoch."""

    def __init__(self, mixture: Mixture, *, seed: int, window: int = WINDOW):
        """`window`: about how many records are packed at once."""
        self.mixture = mixture
        self.seed = seed
        self.windows = max(1, round(mixture.end / window))
        self.window = functools.lru_cache(maxsize=4)(self._window)

    def _window(self, epoch: int, number: int) -> Window:
        start, stop = (self.mixture.end * at / self.windows for at in (number, number + 1))
        sources, records = self.mixture.order(self.seed, epoch, start, stop)
        lengths = self.mixture.lengths(sources, records)
        rows = pack(lengths, self.mixture.row_tokens)
        rows = shuffle(rows, (self.seed, epoch, number))
        return Window(sources, records, rows, int(lengths.sum()))

    def fingerprint(self) -> str:
        """A hash of everything the plan follows from, so that a run is not resumed on other data."""
        mixture = self.mixture
        digest = xxhash.xxh3_64(
            repr((self.seed, self.windows, mixture.row_tokens, mixture.weight_by, mixture.too_long)).encode()
        )
        for source in mixture.sources:
            digest.update(repr(dataclasses.replace(source, dataset=None)).encode())  # type: ignore[arg-type]
            for column in (source.dataset.tokens, source.dataset.rejected_tokens, source.dataset.kind):
                digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class Rows:
    """The rows of a plan in order, from a place on, epoch after epoch without end; any of them at any time.

    Attributes: planned_rows and planned_tokens of the windows planned so far.
    """

    def __init__(self, plan: RowPlan, start: Place = START):
        self.plan = plan
        self.planned_rows = self.planned_tokens = 0
        self._lock = threading.Lock()
        self._windows = [(start.epoch, start.window)]
        self._ends = [-start.row]  # number of the row after each window; before the first, where that begins

    def __getitem__(self, number: int) -> list[tuple[int, int]]:
        """(source, record) of each item of row `number`, counted from the start."""
        place = self.place(number)
        return self.plan.window(place.epoch, place.window).row(place.row)

    def place(self, number: int) -> Place:
        """Where row `number`, counted from the start, stands in the plan."""
        with self._lock:
            while self._ends[-1] <= number:
                self._plan_another()
        at = bisect.bisect_right(self._ends, number) - 1
        return Place(*self._windows[at], number - self._ends[at])

    @property
    def fullness(self) -> float:
        """The share of tokens in the rows planned so far, the rest being padding."""
        return self.planned_tokens / (self.planned_rows * self.plan.mixture.row_tokens)

    def _plan_another(self):
        epoch, number = self._windows[-1]
        window = self.plan.window(epoch, number)
        self.planned_rows += len(window.rows)
        self.planned_tokens += window.tokens
        self._ends.append(self._ends[-1] + len(window.rows))
        self._windows.append((epoch, number + 1) if number + 1 < self.plan.windows else (epoch + 1, 0))
