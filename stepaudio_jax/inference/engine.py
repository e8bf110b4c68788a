"""The engine: requests join and leave a running batch at every step, over a paged key/value cache.

One step is: let in who fits; put a piece of the waiting prompts into the cache; decode a burst of tokens for everyone
whose prompt is in. Long prompts go in by pieces between bursts, so that they hold up nobody. Equal beginnings of
prompts share pages, equal sounds are encoded once. Where pages run out, whoever came last gives his up and later goes
on from where he was.

All of this is host code of one thread, the same on every process of a mesh; programs.py is what runs on the device.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from stepaudio_jax.audio import lengths, stack
from stepaudio_jax.audio.chunks import LONGEST_CUT
from stepaudio_jax.data import bucket, encode
from stepaudio_jax.inference.memory import MemoryPlan
from stepaudio_jax.inference.pages import PagePool, identities, page_names
from stepaudio_jax.inference.programs import STOP_IDS, Burst, Programs, Rows
from stepaudio_jax.inference.row import Prepared, Row
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.sounds import ROWS, SoundCache, digest
from stepaudio_jax.inference.types import AudioProgress, Event, Finished, Request, SamplingParams, Usage
from stepaudio_jax.inference.waiting import WaitingList
from stepaudio_jax.inference.writer import ReplyWriter
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import Linear, unstack
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.text import Tokenizer

SOUND_WIDTHS = (*(seconds * lengths.SAMPLE_RATE for seconds in (1, 2, 5, 10, 15)), LONGEST_CUT)
SOUNDS_AT_ONCE = (1, 4)
IDLE = SamplingParams(temperature=0.0)


class PromptError(ValueError):
    """A request that cannot be answered; the message says by how much and what to do."""


class QueueFull(RuntimeError):
    """As many requests wait as may; ask again later."""


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How large an engine is. What is None is settled by the device.

    Attributes:
      max_rows: most requests that run together (of each lane, over a mesh with a data axis).
      max_length: most tokens of prompt and reply; by default the model's positions.
      page_size: tokens of a page; by default 64 on a TPU, else 16.
      memory: bytes for keys and values; by default what is free (memory.py).
      pages: so many instead, whatever that takes.
      prefill_tokens: most tokens of prompts in one call; by default 2,048 on a TPU, else 512.
      burst: most decode steps between two looks of the host.
      burst_seconds: a burst is as many steps as take about so long: what joins meanwhile waits for its end. One process
        alone; several take whole bursts, for their clocks differ.
      sounds: chunks of sound whose features are kept.
      share_prefixes: let requests use pages that others have filled with the same tokens.
      max_waiting: most requests that may wait.
    """

    max_rows: int = 32
    max_length: int | None = None
    page_size: int | None = None
    memory: int | None = None
    pages: int | None = None
    prefill_tokens: int | None = None
    burst: int = 16
    burst_seconds: float = 0.1
    sounds: int = 64
    share_prefixes: bool = True
    max_waiting: int = 1024


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and how full the engine is now.

    Attributes:
      cached_prompt_tokens: tokens of prompts that were found in the cache, among `prompt_tokens`.
      sounds_encoded, sounds_found: chunks of sound that were encoded, and that had been already.
      interruptions: rows that gave up their pages and came back later.
    """

    running: int
    waiting: int
    pages_total: int
    pages_used: int
    pages_cached: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    sounds_encoded: int
    sounds_found: int
    interruptions: int


def _for_cpu(model: StepAudio) -> StepAudio:
    """The model with its decoder laid out for a CPU, which reads every weight once per token: slicing a stack of
    layers would move each twice. The caller's model stays as it is."""
    model = nnx.merge(*nnx.split(model))
    if not isinstance(model.decoder.layers, nnx.List):
        model.decoder.layers = unstack(model.decoder.layers)
    for _, module in nnx.iter_modules(model.decoder.layers):
        if isinstance(module, Linear) and not module.output_major:
            module.store_output_major()
    return model


class Engine:
    """Serves requests over one model.

    Example:
      >>> engine = Engine(model, tokenizer)
      >>> for event in engine.generate(requests): ...
    """

    def __init__(
        self,
        model: StepAudio,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        *,
        length_rule: str = "hf",
        rules: ShardingRules | None = None,
    ):
        """
        Args:
          rules: the mesh that the model lies on; none: a single device. Rows go over its data and fsdp axes, heads over
            tensor; along context the same work is done by all.
        """
        options = options or EngineOptions()
        on_tpu = jax.default_backend() == "tpu"
        if jax.default_backend() == "cpu" and rules is None:
            model = _for_cpu(model)
        self.config, self.tokenizer, self.length_rule = model.config, tokenizer, length_rule
        self.programs = Programs(
            model, vocab_size=tokenizer.vocab_size, steps=options.burst, length_rule=length_rule, rules=rules
        )
        self.max_length = options.max_length or self.config.decoder.max_position_embeddings
        self.page_size = options.page_size or (64 if on_tpu else 16)
        self.options, self.lanes = options, self.programs.lanes
        self.table_width = -(-self.max_length // self.page_size)
        plan = MemoryPlan.of(self.programs, options, self.page_size, self.table_width)
        self.prefill_tokens = options.prefill_tokens or (2048 if on_tpu else 512)
        self.memory = self.programs.new_memory(plan.pages, self.page_size, options.sounds, options.max_rows)
        self.pools = [PagePool(plan.pages, self.page_size, keep=options.share_prefixes) for _ in range(self.lanes)]
        self.sounds = SoundCache(options.sounds)
        self.row_buckets = _powers(options.max_rows)
        self._waiting: WaitingList[Row] = WaitingList()
        self._running: list[Row] = []  # in order of admission
        self._pace: dict[int, float] = {}  # seconds of a decode step, by rows of its program
        self._counts = dict.fromkeys(("prompt_tokens", "cached_prompt_tokens", "generated_tokens", "interruptions"), 0)

    # Requests in

    def prepare(self, request: Request) -> Prepared:
        """Renders and checks a request. Needs no device and may be called from any thread.

        Raises:
          PromptError: more tokens than the model has positions or the cache has pages for, or too many stop ids.
          AudioError: a clip too short for one audio token.
        """
        if request.conversation is not None:
            example = encode(
                request.conversation,
                self.tokenizer,
                length_rule=self.length_rule,
                generate=True,
                thinking=request.thinking,
                keep_think=request.keep_think,
                template=request.template,
            )
            token_ids, chunks, spans = example.rendered.token_ids, example.chunks, example.rendered.spans
            prefix = self._open_turn(token_ids)
        else:
            token_ids, chunks, spans, prefix = self._ids(request.token_ids or ()), (), (), ""
        size, seconds = len(token_ids), sum(map(len, chunks)) / lengths.SAMPLE_RATE
        room = min(self.max_length, self.pools[0].total * self.page_size)
        if size >= room:
            heard = sum(count for _, count in spans)
            raise PromptError(
                f"the prompt has {size} tokens, {heard} of them audio ({seconds:.0f} s), but "
                f"there is room for {room} ({self.max_length} positions, {self.pools[0].total} pages of "
                f"{self.page_size} tokens); ask about a shorter piece"
            )
        stop_ids = {*self.config.eos_token_ids, self.tokenizer.end_of_turn, *request.sampling.stop_token_ids}
        if len(stop_ids) > STOP_IDS:
            raise PromptError(f"stop_token_ids: at most {STOP_IDS} in all, found {len(stop_ids)}")
        sounds = tuple(digest(piece) for piece in chunks)
        return Prepared(
            request=request,
            token_ids=token_ids,
            chunks=chunks,
            spans=spans,
            sounds=sounds,
            identities=identities(token_ids, spans, sounds),
            prefix=prefix,
            stop_ids=tuple(sorted(stop_ids)),
            limit=min(request.sampling.max_new_tokens, room - size),
        )

    def add(self, request: Request | Prepared) -> None:
        """Takes a request in; its events come from `step`.

        Raises:
          QueueFull: `max_waiting` requests wait already.
          ValueError: the id of one that runs or waits; else as `prepare`.
        """
        prepared = request if isinstance(request, Prepared) else self.prepare(request)
        if len(self._waiting) >= self.options.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests wait already, as many as may; try again later")
        if any(row.id == prepared.request.id for row in (*self._waiting, *self._running)):
            raise ValueError(f"id: a request {prepared.request.id} is being answered already")
        usage = Usage(
            audio_seconds=sum(map(len, prepared.chunks)) / lengths.SAMPLE_RATE,
            audio_tokens=sum(count for _, count in prepared.spans),
            prompt_tokens=len(prepared.token_ids),
            completion_tokens=0,
        )
        writer = ReplyWriter(prepared.request, self.tokenizer, prepared.prefix, prepared.stop_ids, usage)
        self._waiting.append(Row(prepared, writer))
        self._counts["prompt_tokens"] += len(prepared.token_ids)

    def cancel(self, request_id: str) -> None:
        """Drops a request and frees its pages; no events of it follow. One that is not known is ignored."""
        for row in [row for row in self._running if row.id == request_id]:
            self._leave(row)
        for row in [row for row in self._waiting if row.id == request_id]:
            self._waiting.remove(row)

    @property
    def has_work(self) -> bool:
        return bool(self._running) or len(self._waiting) > 0

    @property
    def running(self) -> list[str]:
        """Ids of the requests that have a row; the others wait."""
        return [row.id for row in self._running]

    def generate(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Answers requests; takes them from the iterable as there is room, and gives events as they come, interleaved.

        A caller who stops listening early leaves nothing running. Errors are those of `prepare`.
        """
        requests, mine = iter(requests), set()
        ahead = 2 * self.options.max_rows * self.lanes
        try:
            while True:
                for request in itertools.islice(requests, max(ahead - len(mine), 0)):
                    self.add(request)
                    mine.add(request.id)
                if not mine:
                    return
                for event in self.step():
                    if event.request_id in mine:
                        if isinstance(event, Finished):
                            mine.remove(event.request_id)
                        yield event
        finally:
            for request_id in mine:
                self.cancel(request_id)

    # One step

    def step(self) -> list[Event]:
        """One round of work; gives what has happened."""
        events: list[Event] = []
        self._admit()
        while True:
            pieces = self._next_pieces()
            if pieces:
                events += self._listen(pieces)
                self._prefill(pieces)
            deciding = [row for row in self._running if row.decodes]
            if deciding or not pieces:
                break
        if deciding:
            events += self._decode(deciding)
        return events

    def _admit(self) -> None:
        """Lets in whoever is next as long as there are rows and pages; nobody overtakes one who waits for pages."""
        being_filled = {name for row in self._running for name in row.names[row.computed // self.page_size :]}
        for row in self._waiting.in_order(self._running):
            if not row.names:
                row.names = page_names(row.all_identities(), self.page_size)
            lane = self._lane_for(row)
            if lane is None:
                return
            pool = self.pools[lane]
            found = pool.find(row.names)[: (row.length - 1) // self.page_size]
            following = row.names[len(found) : len(found) + 1]
            if self.options.share_prefixes and following and following[0] in being_filled:
                continue  # another row is computing its next page: it comes when that is done
            needed = self._pages_for(row.length + 1) - len(found)
            if needed > pool.available - pool.unheld(found):
                return
            pool.hold(found)
            row.pages = found + pool.take(needed)
            row.computed, row.lane = len(found) * self.page_size, lane
            row.place = min(set(range(self.options.max_rows)) - {r.place for r in self._running if r.lane == lane})
            self._waiting.remove(row)
            self._running.append(row)
            being_filled.update(row.names[len(found) :])
            self._counts["cached_prompt_tokens"] += min(row.computed, len(row.prepared.token_ids))
            if not row.writer.token_ids:
                row.writer.found_in_cache(row.computed)
            if row.request.sampling.repetition_penalty != 1:
                self.memory = self.programs.mark(self.memory, lane, row.place, row.tokens(0, row.length))

    def _lane_for(self, row: Row) -> int | None:
        """Of the lanes with a free place the one that knows most of the prompt, then has the most pages."""
        taken = [sum(row.lane == lane for row in self._running) for lane in range(self.lanes)]
        free = [lane for lane in range(self.lanes) if taken[lane] < self.options.max_rows]
        if not free:
            return None
        return max(free, key=lambda lane: (len(self.pools[lane].find(row.names)), self.pools[lane].available, -lane))

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    # Prompts

    def _next_pieces(self) -> list[tuple[Row, int, int]]:
        """(row, start, stop) of the pieces of prompts for the next call: the oldest row's, and what fits beside it."""
        pieces: list[tuple[Row, int, int]] = []
        sounds: set[bytes] = set()
        length, per_lane = 0, [0] * self.lanes
        for row in self._running:
            if row.decodes:
                continue
            start, stop = row.computed, min(row.length - 1, row.computed + self.prefill_tokens)
            if not pieces:
                length = bucket(stop - start, self._piece_buckets)
            if stop - start > length or per_lane[row.lane] >= self._rows_of(length):
                continue
            within = [sound for sound, _, _ in self._chunks_within(row, start, stop)]
            if len(sounds.union(within)) > self.sounds.entries:
                if pieces:
                    continue
                within = within[: self.sounds.entries]  # the piece ends before a sound that there is no room for
                stop = self._chunks_within(row, start, stop)[len(within)][1]
            sounds.update(within)
            per_lane[row.lane] += 1
            pieces.append((row, start, stop))
        return pieces

    @property
    def _piece_buckets(self) -> list[int]:
        return _powers(self.prefill_tokens, 16)

    def _rows_of(self, length: int) -> int:
        """How many pieces of this length one call takes."""
        return max(1, min(self.prefill_tokens // length, 16, self.options.max_rows))

    @staticmethod
    def _chunks_within(row: Row, start: int, stop: int) -> list[tuple[bytes, int, int]]:
        """(digest, first token, number) of the chunks of sound that a piece of the prompt touches."""
        prepared = row.prepared
        return [
            (sound, begin, number)
            for number, (sound, (begin, count)) in enumerate(zip(prepared.sounds, prepared.spans, strict=True))
            if begin < stop and begin + count > start
        ]

    def _listen(self, pieces: list[tuple[Row, int, int]]) -> list[Event]:
        """Encodes the sounds of the next pieces that have not been, several of one width together."""
        wanted = {
            sound: row.prepared.chunks[number]
            for row, start, stop in pieces
            for sound, _, number in self._chunks_within(row, start, stop)
        }
        absent = sorted(self.sounds.missing(wanted), key=lambda sound: len(wanted[sound]))
        while absent:
            width = bucket(len(wanted[absent[0]]), SOUND_WIDTHS)
            same = list(itertools.takewhile(lambda s, w=width: bucket(len(wanted[s]), SOUND_WIDTHS) == w, absent))
            together = max(n for n in SOUNDS_AT_ONCE if n <= len(same))
            samples, sizes = stack([wanted[sound] for sound in same[:together]], (width,))
            places = np.array([self.sounds.enter(sound) for sound in same[:together]], np.int32)
            self.memory = self.programs.hear(self.memory, samples, sizes, places)
            absent = absent[together:]
        events: list[Event] = []
        for row, start, stop in pieces:
            heard = [number + 1 for _, _, number in self._chunks_within(row, start, stop)]
            if heard and heard[-1] > row.chunks_heard:
                row.chunks_heard = heard[-1]
                events.append(AudioProgress(heard[-1], len(row.prepared.chunks), row.id))
        return events

    def _prefill(self, pieces: list[tuple[Row, int, int]]) -> None:
        length = bucket(max(stop - start for _, start, stop in pieces), self._piece_buckets)
        by_lane = [[piece for piece in pieces if piece[0].lane == lane] for lane in range(self.lanes)]
        each = bucket(max(map(len, by_lane)), _powers(self._rows_of(length)))
        rows = self.lanes * each
        tokens, heard = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
        starts, counts = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        table = np.zeros((rows, self.table_width), np.int32)
        for lane, own in enumerate(by_lane):
            for line, (row, start, stop) in enumerate(own, lane * each):
                tokens[line, : stop - start] = row.tokens(start, stop)
                starts[line], counts[line] = start, stop - start
                table[line, : len(row.pages)] = row.pages
                for sound, begin, number in self._chunks_within(row, start, stop):
                    end = min(begin + row.prepared.spans[number][1], stop)
                    first = max(begin, start)
                    at = self.sounds.place(sound) * ROWS + np.arange(first, end) - begin
                    heard[line, first - start : end - start] = at
        self.memory = self.programs.prefill(self.memory, tokens, heard, starts, counts, table)
        for row, _, stop in pieces:
            self._advance(row, stop)

    def _advance(self, row: Row, computed: int) -> None:
        """The row's first `computed` tokens are in the cache; pages that are full can be found from now on."""
        full = computed // self.page_size
        if full > len(row.names):
            row.names = page_names(row.all_identities()[:computed], self.page_size, after=row.names)
        pool = self.pools[row.lane]
        for page in range(row.computed // self.page_size, full):
            pool.name(row.pages[page], row.names[page])
        row.computed = computed

    # Replies

    def _decode(self, deciding: list[Row]) -> list[Event]:
        wanted = self._burst_size(len(deciding))
        deciding = self._make_room(deciding, wanted)
        if not deciding:
            return []
        by_lane = [[row for row in deciding if row.lane == lane] for lane in range(self.lanes)]
        each = bucket(max(map(len, by_lane)), self.row_buckets)
        lines = {lane * each + i: row for lane, own in enumerate(by_lane) for i, row in enumerate(own)}
        rows = self._rows(lines, self.lanes * each, wanted)
        wanted = int(rows.steps.max())
        began = time.perf_counter()
        self.memory, burst = self.programs.decode(self.memory, rows, wanted)
        tokens = np.asarray(burst.tokens)
        ran = int(burst.steps)
        pace = (time.perf_counter() - began) / max(ran, 1)
        if self.programs.compilations == self._compiled:
            self._pace[each] = 0.7 * self._pace.get(each, pace) + 0.3 * pace
        self._compiled = self.programs.compilations
        return self._write(lines, rows, tokens, burst, ran)

    _compiled = -1

    def _burst_size(self, deciding: int) -> int:
        """Steps of the next burst: about `burst_seconds` of them, by what a step took before."""
        if jax.process_count() > 1:
            return self.options.burst
        pace = self._pace.get(bucket(-(-deciding // self.lanes), self.row_buckets))
        if pace is None:
            return min(4, self.options.burst)
        return int(np.clip(self.options.burst_seconds / max(pace, 1e-6), 1, self.options.burst))

    def _make_room(self, deciding: list[Row], wanted: int) -> list[Row]:
        """Pages for the tokens to come. Where there are too few, whoever came last, of the lowest priority, goes back
        to wait; the first of the highest priority never does."""
        for row in sorted(deciding, key=lambda row: (row.request.priority, self._running.index(row))):
            if row.place < 0:
                continue  # gone back already
            pool = self.pools[row.lane]
            needed = self._pages_for(row.length - 1 + min(wanted, row.remaining)) - len(row.pages)
            while needed > pool.available:
                others = [r for r in self._running if r.lane == row.lane]
                last = max(others, key=lambda r: (r.request.priority, self._running.index(r)))
                self._interrupt(last)
                if last is row:
                    break
            else:
                if needed > 0:
                    row.pages += pool.take(needed)
        return [row for row in deciding if row.place >= 0]

    def _interrupt(self, row: Row) -> None:
        self._leave(row)
        row.computed = 0
        self._waiting.put_back(row)
        self._counts["interruptions"] += 1

    def _leave(self, row: Row) -> None:
        self._running.remove(row)
        self.pools[row.lane].release(row.pages)
        row.pages, row.place = [], -1

    def _rows(self, lines: dict[int, Row], size: int, wanted: int) -> Rows:
        """The arrays of a burst."""
        burst = self.programs.steps
        last, positions, steps = np.zeros((3, size), np.int32)
        forced = np.full((size, burst), -1, np.int32)
        stop_ids = np.full((size, STOP_IDS), -1, np.int32)
        places = np.full(size, self.options.max_rows, np.int32)
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

    def _write(self, lines: dict[int, Row], rows: Rows, tokens: np.ndarray, burst: Burst, ran: int) -> list[Event]:
        """Hands each row its tokens, up to where it ends or wants another than was sampled."""
        log_probs = np.asarray(burst.log_probs)
        tops = [row.request.sampling.top_log_probs for row in lines.values()]
        top_ids, top_values = (np.asarray(x) for x in burst[3:]) if any(tops) else (None, None)
        events: list[Event] = []
        for line, row in lines.items():
            writer, count = row.writer, row.request.sampling.top_log_probs
            mine = min(ran, int(rows.steps[line]))
            for step in range(mine):
                was_forced = rows.forced[line, step] >= 0
                top = ()
                if count and top_ids is not None and top_values is not None:
                    best = top_ids[line, step, :count].tolist(), top_values[line, step, :count].tolist()
                    top = tuple(zip(*best, strict=True))
                score = None if was_forced else float(log_probs[line, step])
                writer.push(int(tokens[line, step]), score, top)
                if not writer.done and row.remaining <= 0:
                    writer.out_of_room()
                following = rows.forced[line, step + 1] if step + 1 < self.programs.steps else -1
                if writer.done or (writer.pending and writer.pending[0] != following):
                    break  # what ran past is dropped, and overwritten from here
            self._counts["generated_tokens"] += len(writer.token_ids) + len(row.prepared.token_ids) - 1 - row.computed
            self._advance(row, row.length - 1)
            events += writer.take_events()
            if writer.done:
                self._leave(row)
                events.append(Finished(writer.completion()))
        return events

    # The whole

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            pages_total=sum(pool.total for pool in self.pools),
            pages_used=sum(pool.used for pool in self.pools),
            pages_cached=sum(pool.kept for pool in self.pools),
            sounds_encoded=self.sounds.encoded,
            sounds_found=self.sounds.found,
            **self._counts,
        )

    def warm_up(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Compiles every program by running it once on nothing; `progress(done, total, what)` before each."""
        shapes = list(self._shapes())
        for done, (what, run) in enumerate(shapes):
            progress(done, len(shapes), what)
            run()
        jax.block_until_ready(self.memory)
        progress(len(shapes), len(shapes), "ready")

    def _shapes(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every program there is, and how to run it on nothing."""

        def hear(count: int, width: int):
            nowhere = np.full(count, self.options.sounds, np.int32)
            zeros = np.zeros((count, width), np.float32), np.full(count, width, np.int32)
            self.memory = self.programs.hear(self.memory, *zeros, nowhere)

        def prefill(each: int, length: int):
            rows = self.lanes * each
            tokens, nothing = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
            none, table = np.zeros(rows, np.int32), np.zeros((rows, self.table_width), np.int32)
            self.memory = self.programs.prefill(self.memory, tokens, nothing, none, none, table)

        def decode(each: int):
            self.memory, burst = self.programs.decode(self.memory, self._rows({}, self.lanes * each, 0), 0)
            jax.block_until_ready(burst)

        def mark():
            nothing = np.zeros(0, np.int32)
            self.memory = self.programs.mark(self.memory, 0, 0, nothing)

        for each in self.row_buckets:
            yield f"decode {each}", lambda each=each: decode(each)
        for length in self._piece_buckets:
            for each in _powers(self._rows_of(length)):
                yield f"prefill {each} × {length}", lambda each=each, length=length: prefill(each, length)
        for width in SOUND_WIDTHS:
            for count in SOUNDS_AT_ONCE:
                yield (
                    f"sound {count} × {width / lengths.SAMPLE_RATE:.0f} s",
                    lambda count=count, width=width: hear(count, width),
                )
        yield "mark", mark

    def update(self, state: Any) -> None:
        """Takes other weights, a tree as `programs.state`, from the trainer's arrays without a copy on disk. What was
        cached of the old ones is forgotten; rows that run compute theirs again.

        Raises:
          ValueError: a tree of another model.
        """
        self.programs.update(state)
        for row in list(reversed(self._running)):
            self._interrupt(row)
        for pool in self.pools:
            pool.clear()
        self.sounds.clear()

    def _ids(self, token_ids: Iterable[int]) -> np.ndarray:
        ids = np.asarray(token_ids, np.int64)
        if ids.min() < 0 or ids.max() >= self.tokenizer.vocab_size:
            last = self.tokenizer.vocab_size - 1
            raise PromptError(f"token_ids: expected 0 to {last}, found {ids.min()} to {ids.max()}")
        return ids.astype(np.int32)

    def _open_turn(self, token_ids: np.ndarray) -> str:
        """The text of the assistant turn that a prompt leaves open."""
        start = int(np.flatnonzero(token_ids == self.tokenizer.begin_of_turn)[-1])
        return self.tokenizer.decode(token_ids[start + 1 :].tolist()).partition("\n")[2]


def _powers(most: int, least: int = 1) -> list[int]:
    """least, 2 · least, 4 · least … up to `most`, which is always the last."""
    sizes = []
    while least < most:
        sizes.append(least)
        least *= 2
    return [*sizes, most]
