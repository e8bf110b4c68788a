"""Weighted mixtures of data sets: which records an epoch draws, in which order.

    mixture = Mixture(
        [Source("cot", StoredDataset("cot"), weight=3), Source("chat", StoredDataset("chat"), limit=2)],
        row_tokens=10_240,
    )

An epoch draws from all sources side by side in the proportions of their weights. Each source goes through its records
in an order shuffled anew every pass; one that is through begins again, up to `limit` passes in an epoch, then it drops
out and the others go on in their proportions. The epoch ends as soon as every source has been gone through once (or
to its limit, where that is less than a pass).

The order is a closed form of (seed, epoch, place), so any stretch of it is found without what comes before. Memory,
beside 9 bytes a record of the data sets' own columns: 4 bytes a record of those sources of which records are left out
(8 for a moment at the start), nothing for the others. 10^8 records take 1.3 GB, and some seconds at the start.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from stepaudio_jax.data.lengths import HAS_AUDIO, HAS_THINK
from stepaudio_jax.data.permutation import permute
from stepaudio_jax.data.samples import Sample

FILTERS = {
    "audio": (HAS_AUDIO, True),
    "text": (HAS_AUDIO, False),
    "cot": (HAS_THINK, True),
    "empty_think": (HAS_THINK, False),
}
STRETCH = 1 << 20


class Dataset(Protocol):
    """What a source needs of a data set (stored.StoredDataset): records, their rendered lengths and kinds (lengths.py),
    and in `info` what the lengths were measured with."""

    info: dict[str, Any]
    tokens: Int[np.ndarray, " N"]
    rejected_tokens: Int[np.ndarray, " N"]
    kind: Int[np.ndarray, " N"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
      name: for messages and metrics.
      weight: its share, relative to the other sources'.
      only: which records take part, all conditions at once: "audio" or "text" (with or without sound), "cot" or
        "empty_think" (with or without reasoning that is trained).
      limit: most passes over it in one epoch, a fraction allowed; None for as many as the others need.
      max_records: take part only so many, the first that pass `only`.
    """

    name: str
    dataset: Dataset
    weight: float = 1.0
    only: Sequence[str] = ()
    limit: float | None = None
    max_records: int | None = None


class Phase(NamedTuple):
    """A part of an epoch in which the same sources are drawn from. Time is counted in records drawn.

    Attributes: start, its time; drawn [S], the records drawn of each source before it; rates [S], records of each
    source per record, adding up to 1.
    """

    start: float
    drawn: np.ndarray
    rates: np.ndarray


class Mixture:
    """Sources and their proportions.

    Attributes:
      sources: as given.
      row_tokens: the length of a row; what is longer is cut or left out.
      weight_by, too_long: as given.
      left_out: records of each source longer than a row, where they are left out.
      end: the time at which an epoch ends: its number of records.
    """

    def __init__(
        self, sources: Sequence[Source], *, row_tokens: int, weight_by: str = "tokens", too_long: str = "truncate"
    ):
        """
        Args:
          weight_by: what the weights divide, "tokens" or "records".
          too_long: "truncate" takes a record longer than a row as one row; "drop" leaves it out.

        Raises:
          ValueError: a field that cannot be used, or a source of which no record is left.
        """
        _one_of("weight_by", weight_by, ("tokens", "records"))
        _one_of("too_long", too_long, ("truncate", "drop"))
        if not sources:
            raise ValueError("sources: a mixture needs at least one")
        self.sources = tuple(sources)
        self.row_tokens, self.weight_by, self.too_long = row_tokens, weight_by, too_long
        self.left_out: list[int] = []
        self._chosen: list[np.ndarray | None] = []  # numbers of the records that take part, None for all
        self._sizes = np.zeros(len(sources), np.int64)
        mean_tokens = np.zeros(len(sources))
        for i, source in enumerate(sources):
            _check(source, [other.name for other in sources[:i]])
            chosen, tokens, left_out = self._choose(source)
            self.left_out.append(left_out)
            self._sizes[i] = sum(map(len, chosen))
            self._chosen.append(None if self._sizes[i] == len(source.dataset) else np.concatenate(chosen))
            mean_tokens[i] = tokens / self._sizes[i]
        weights = np.array([source.weight for source in sources], float)
        limits = np.array([np.inf if source.limit is None else source.limit for source in sources])
        self._most = np.maximum(1, np.floor(limits * self._sizes))
        rates = weights / mean_tokens if weight_by == "tokens" else weights
        self._phases, self.end = _phases(rates, np.minimum(self._sizes, self._most), self._most)

    def order(
        self, seed: int, epoch: int, start: float = 0.0, stop: float | None = None
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The source and the record numbers that an epoch draws between two times, by default in all of it.

        Every stretch holds each source's share to within one record; inside it, they stand source by source.
        """
        before, after = self._drawn(start), self._drawn(self.end if stop is None else stop)
        records = [
            self._records(seed, epoch, source, np.arange(before[source], after[source]))
            for source in range(len(self.sources))
        ]
        return np.repeat(np.arange(len(records)), after - before), np.concatenate(records)

    def lengths(self, sources: Int[np.ndarray, " N"], records: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """Tokens that records take in a row, a rejected reply's included."""
        found = np.zeros(len(records), np.int64)
        for i, source in enumerate(self.sources):
            mine = sources == i
            data, at = source.dataset, records[mine]
            found[mine] = data.tokens[at].astype(np.int64) + data.rejected_tokens[at]
        return np.minimum(found, self.row_tokens)

    def _choose(self, source: Source) -> tuple[list[np.ndarray], int, int]:
        """The records that take part, in pieces, their tokens, and how many others are too long."""
        most = len(source.dataset) if source.max_records is None else source.max_records
        chosen, tokens, left_out = [], 0, 0
        for start, passing, lengths in _stretches(source):
            fits = passing & (lengths <= self.row_tokens) if self.too_long == "drop" else passing
            left_out += int(np.count_nonzero(passing & ~fits))
            if not lengths.all():
                raise ValueError(f"sources.{source.name}: record {start + lengths.argmin()} has no tokens")
            found = np.flatnonzero(fits)[:most]
            most -= len(found)
            tokens += int(np.minimum(lengths[found], self.row_tokens).sum())
            chosen.append((found + start).astype(np.uint32))
        if not sum(map(len, chosen)):
            raise ValueError(
                f"sources.{source.name}: expected records to train on, found none among {len(source.dataset)}: "
                f"only={tuple(source.only)} and {left_out} left out as longer than a row of {self.row_tokens} tokens"
            )
        return chosen, tokens, left_out

    def _records(self, seed: int, epoch: int, source: int, drawn: np.ndarray) -> np.ndarray:
        """The records at these places of what an epoch draws from a source."""
        size, chosen = int(self._sizes[source]), self._chosen[source]
        records = np.zeros(len(drawn), np.int64)
        passes, places = np.divmod(drawn, size)
        for number in np.unique(passes):
            now = passes == number
            records[now] = permute(places[now].astype(np.uint64), size, (seed, epoch, source, int(number)))
        return records if chosen is None else chosen[records].astype(np.int64)

    def _drawn(self, time: float) -> Int[np.ndarray, " S"]:
        """Records drawn of each source before this time."""
        phase = self._phases[bisect.bisect_right(self._phases, time, key=lambda phase: phase.start) - 1]
        exact = phase.drawn + phase.rates * (time - phase.start)
        return np.minimum(np.floor(exact + 0.5), self._most).astype(np.int64)


def _phases(rates: np.ndarray, needed: np.ndarray, most: np.ndarray) -> tuple[list[Phase], float]:
    """The phases of an epoch and its end: each source drawn `needed` times at least, `most` times at most."""
    phases, time, drawn = [], 0.0, np.zeros(len(rates))
    going = np.ones(len(rates), bool)
    while True:
        now = np.where(going, rates, 0) / rates[going].sum()
        phases.append(Phase(time, drawn, now))
        to_end = np.max(((needed - drawn)[going] / now[going]), initial=0.0)
        to_limit = (most - drawn)[going] / now[going]
        if to_end <= to_limit.min():
            return phases, time + to_end
        time += to_limit.min()
        drawn = drawn + now * to_limit.min()
        stops = np.flatnonzero(going)[to_limit.argmin()]
        drawn[stops], going[stops] = most[stops], False


def _stretches(source: Source) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(start, which records pass `only`, lengths) of the data set, a stretch at a time, as lengths take 8 bytes."""
    data = source.dataset
    for start in range(0, len(data), STRETCH):
        part = slice(start, start + STRETCH)
        kind = np.asarray(data.kind[part])
        passing = np.ones(len(kind), bool)
        for name in source.only:
            bit, wanted = FILTERS[name]
            passing &= (kind & bit > 0) == wanted
        yield start, passing, data.tokens[part].astype(np.int64) + data.rejected_tokens[part]


def _check(source: Source, names: Sequence[str]):
    where = f"sources.{source.name}"
    if source.name in names:
        raise ValueError(f"{where}: two sources have this name")
    if not 0 < source.weight < np.inf:
        raise ValueError(f"{where}.weight: expected a number above 0, found {source.weight}")
    for name in source.only:
        _one_of(f"{where}.only", name, tuple(FILTERS))
    for field in ("limit", "max_records"):
        if (value := getattr(source, field)) is not None and not value > 0:
            raise ValueError(f"{where}.{field}: expected a number above 0 or None, found {value}")


def _one_of(where: str, found: str, expected: Sequence[str]):
    if found not in expected:
        raise ValueError(f'{where}: expected one of {", ".join(expected)}, found "{found}"')
