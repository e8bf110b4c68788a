"""Replies being written: the arrays of a burst, how long it is, and what of it each row takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import numpy as np

from stepaudio_jax.data import bucket
from stepaudio_jax.inference.options import powers
from stepaudio_jax.inference.programs import STOP_IDS, Burst, Memory, Programs, Rows
from stepaudio_jax.inference.row import Row
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.types import SamplingParams

IDLE = SamplingParams(temperature=0.0)
FIRST_STEPS = 4
"""Of the first burst of a size, before it is known how long a step takes."""


class Replies:
    """Decodes bursts of tokens and hands them to the rows' writers."""

    def __init__(self, programs: Programs, max_rows: int, table_width: int, burst_seconds: float):
        """
        Args:
          max_rows: of each lane.
          table_width: pages of the longest row.
          burst_seconds: how long a burst should take.
        """
        self.programs, self.max_rows, self.table_width = programs, max_rows, table_width
        self.burst_seconds = burst_seconds
        self.row_buckets = powers(max_rows)
        self._pace: dict[int, float] = {}  # seconds of a step, by rows of its program

    def steps(self, deciding: list[Row]) -> int:
        """How many steps the next burst of these rows should have, by what a step took before. Several processes, whose
        clocks differ, take whole bursts."""
        if jax.process_count() > 1:
            return self.programs.steps
        pace = self._pace.get(self._each(self._by_lane(deciding)))
        if pace is None:
            return min(FIRST_STEPS, self.programs.steps)
        return int(np.clip(self.burst_seconds / pace, 1, self.programs.steps))

    def decode(self, memory: Memory, deciding: list[Row], wanted: int) -> Memory:
        """Up to `wanted` tokens for every row, which have pages for them."""
        by_lane = self._by_lane(deciding)
        each = self._each(by_lane)
        lines = {lane * each + i: row for lane, own in enumerate(by_lane) for i, row in enumerate(own)}
        rows = self.arrays(lines, each, wanted)
        compiled, began = self.programs.compilations, time.perf_counter()
        memory, burst = self.programs.decode(memory, rows, int(rows.steps.max()))
        ran = int(burst.steps)
        pace = max((time.perf_counter() - began) / max(ran, 1), 1e-6)
        if self.programs.compilations == compiled:  # else it says how long compiling takes
            self._pace[each] = 0.7 * self._pace.get(each, pace) + 0.3 * pace
        self._write(lines, rows, burst, ran)
        return memory

    def _by_lane(self, deciding: list[Row]) -> list[list[Row]]:
        return [[row for row in deciding if row.lane == lane] for lane in range(self.programs.lanes)]

    def _each(self, by_lane: list[list[Row]]) -> int:
        return bucket(max(map(len, by_lane)), self.row_buckets)

    def arrays(self, lines: Mapping[int, Row], each: int, wanted: int) -> Rows:
        """What the program takes: rows by the line they are on, of `each` lines in every lane."""
        size, burst = self.programs.lanes * each, self.programs.steps
        last, positions, steps = np.zeros((3, size), np.int32)
        forced = np.full((size, burst), -1, np.int32)
        stop_ids = np.full((size, STOP_IDS), -1, np.int32)
        places = np.full(size, self.max_rows, np.int32)
        table = np.zeros((size, self.table_width), np.int32)
        for line, row in lines.items():
            last[line], positions[line], places[line] = row.last_token, row.length - 1, row.place
            steps[line] = min(wanted, row.remaining)
            pending = row.writer.pending[:burst]
            forced[line, : len(pending)] = pending
            stop_ids[line, : len(row.prepared.stop_ids)] = row.prepared.stop_ids
            table[line, : len(row.pages)] = row.pages
        params = [lines[line].request.sampling if line in lines else IDLE for line in range(size)]
        return Rows(last, positions, steps, forced, stop_ids, places, table, SamplingArrays.stack(params))

    def _write(self, lines: Mapping[int, Row], rows: Rows, burst: Burst, ran: int) -> None:
        """Hands each row its tokens, up to where it ends or wants another than was sampled; what ran past that is
        dropped, and its place in the cache overwritten from there."""
        tokens, log_probs = np.asarray(burst.tokens), np.asarray(burst.log_probs)
        asked = any(row.request.sampling.top_log_probs for row in lines.values())
        top_ids, top_values = (np.asarray(x) if asked else None for x in (burst.top_ids, burst.top_log_probs))
        for line, row in lines.items():
            writer, count = row.writer, row.request.sampling.top_log_probs
            for step in range(min(ran, int(rows.steps[line]))):
                forced = rows.forced[line, step] >= 0
                top = ()
                if count and top_ids is not None and top_values is not None:
                    best = top_ids[line, step, :count].tolist(), top_values[line, step, :count].tolist()
                    top = tuple(zip(*best, strict=True))
                writer.push(int(tokens[line, step]), None if forced else float(log_probs[line, step]), top)
                if not writer.done and row.remaining <= 0:
                    writer.out_of_room()
                following = rows.forced[line, step + 1] if step + 1 < self.programs.steps else -1
                if writer.done or (writer.pending and writer.pending[0] != following):
                    break
