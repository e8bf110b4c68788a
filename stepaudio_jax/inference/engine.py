"""The engine: requests join and leave a running batch at every step, over a paged key/value cache.

One step is: let in who fits; put a piece of the waiting prompts into the cache; decode a burst of tokens for everyone
whose prompt is in. Long prompts go in by pieces between bursts, so that they hold up nobody. Equal beginnings of
prompts share pages, equal sounds are encoded once. Where pages run out, whoever came last gives his up and later goes
on from where he was.

All of this is host code of one thread, the same on every process of a mesh; programs.py is what runs on the device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from stepaudio_jax.audio import lengths
from stepaudio_jax.data import encode
from stepaudio_jax.inference.calibration import kv_scale
from stepaudio_jax.inference.memory import MemoryPlan
from stepaudio_jax.inference.options import EngineOptions, EngineStats
from stepaudio_jax.inference.pages import PagePool, identities
from stepaudio_jax.inference.programs import STOP_IDS, Programs
from stepaudio_jax.inference.prompts import SOUND_WIDTHS, SOUNDS_AT_ONCE, Prompts
from stepaudio_jax.inference.refusal import PromptError, too_long
from stepaudio_jax.inference.replies import Replies
from stepaudio_jax.inference.row import Prepared, Row
from stepaudio_jax.inference.scheduler import Scheduler
from stepaudio_jax.inference.sounds import digest
from stepaudio_jax.inference.types import Event, Finished, Request, Usage
from stepaudio_jax.inference.writer import ReplyWriter
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import Linear, unstack
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.text import Tokenizer


class QueueFull(RuntimeError):
    """As many requests wait as may; ask again later."""


def laid_out(model: StepAudio, options: EngineOptions, rules: ShardingRules | None) -> StepAudio:
    """The model as the engine computes with it; the caller's stays as it is.

    On a CPU, which reads every weight once per token, the decoder's layers are separate, for slicing a stack would move
    each twice, and their kernels output-major.
    """
    model = nnx.merge(*nnx.split(model))
    on_cpu = rules is None and jax.default_backend() == "cpu"
    if on_cpu and not isinstance(model.decoder.layers, nnx.List):
        model.decoder.layers = unstack(model.decoder.layers)
    for _, module in nnx.iter_modules(model.decoder.layers):
        if isinstance(module, Linear):
            if on_cpu and not module.output_major:
                module.store_output_major()
            if options.weights == "int8":
                module.quantise()
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
        rules = rules if rules is not None and rules.axes else None
        on_tpu = jax.default_backend() == "tpu"
        model = laid_out(model, options, rules)
        self.config, self.tokenizer, self.length_rule = model.config, tokenizer, length_rule
        self.programs = Programs(
            model, vocab_size=tokenizer.vocab_size, steps=options.burst, length_rule=length_rule, rules=rules
        )
        self.programs.place()
        self._hand_over = jax.jit(self._handed_over, static_argnums=0, out_shardings=self.programs.shardings)
        self.max_length = options.max_length or self.config.decoder.max_position_embeddings
        self.page_size = options.page_size or (64 if on_tpu else 16)
        self.options, rows = options, options.max_rows
        width = -(-self.max_length // self.page_size)
        at_once = options.prefill_tokens or (2048 if on_tpu else 512)
        pages = MemoryPlan.of(self.programs, options, self.page_size, width).pages
        pools = [PagePool(pages, self.page_size, keep=options.share_prefixes) for _ in range(self.programs.lanes)]
        self.scheduler = Scheduler(pools, rows, share_prefixes=options.share_prefixes)
        self.prompts = Prompts(self.programs, at_once, options.sounds, width)
        self.replies = Replies(self.programs, rows, width, options.burst_seconds)
        scale = kv_scale(self.programs, tokenizer, self.page_size) if options.kv_cache == "int8" else None
        self.memory = self.programs.new_memory(pages, self.page_size, options.sounds, rows, scale)
        self._prompt_tokens = self._generated_tokens = 0

    # Requests in

    @property
    def room(self) -> int:
        """Most tokens of a prompt and its reply: there are positions and pages for so many."""
        return min(self.max_length, self.scheduler.pools[0].total * self.page_size)

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
        if size >= self.room:
            raise too_long(
                size,
                sum(count for _, count in spans),
                seconds,
                self.config.decoder,
                reply=request.sampling.max_new_tokens,
                length=self.max_length,
                pages=self.scheduler.pools[0].total,
                page_size=self.page_size,
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
            limit=min(request.sampling.max_new_tokens, self.room - size),
        )

    def add(self, request: Request | Prepared) -> None:
        """Takes a request in; its events come from `step`.

        Raises:
          QueueFull: `max_waiting` requests wait already.
          ValueError: the id of one that runs or waits; else as `prepare`.
        """
        prepared = request if isinstance(request, Prepared) else self.prepare(request)
        scheduler = self.scheduler
        if len(scheduler.waiting) >= self.options.max_waiting:
            raise QueueFull(f"{len(scheduler.waiting)} requests wait already, as many as may; try again later")
        if any(row.id == prepared.request.id for row in (*scheduler.waiting, *scheduler.running)):
            raise ValueError(f"id: a request {prepared.request.id} is being answered already")
        usage = Usage(
            audio_seconds=sum(map(len, prepared.chunks)) / lengths.SAMPLE_RATE,
            audio_tokens=sum(count for _, count in prepared.spans),
            prompt_tokens=len(prepared.token_ids),
            completion_tokens=0,
        )
        writer = ReplyWriter(prepared.request, self.tokenizer, prepared.prefix, prepared.stop_ids, usage)
        scheduler.waiting.append(Row(prepared, writer))
        self._prompt_tokens += len(prepared.token_ids)

    def cancel(self, request_id: str) -> None:
        """Drops a request and frees its pages; no events of it follow. One that is not known is ignored."""
        self.scheduler.drop(request_id)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running) or len(self.scheduler.waiting) > 0

    @property
    def running(self) -> list[str]:
        """Ids of the requests that have a row; the others wait."""
        return [row.id for row in self.scheduler.running]

    def generate(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Answers requests; takes them from the iterable as there is room, and gives events as they come, interleaved.

        A caller who stops listening early leaves nothing running. Errors are those of `prepare`.
        """
        requests, mine = iter(requests), set()
        ahead = 2 * self.options.max_rows * self.programs.lanes
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
        scheduler = self.scheduler
        self._admit()
        while pieces := self.prompts.next_pieces(scheduler.running):
            self.memory, heard = self.prompts.compute(self.memory, pieces)
            events += heard
            for piece in pieces:
                scheduler.advance(piece.row, piece.stop)
            arrived = self._admit()  # who waited for a page of these prompts: they write from now on, together
            if not arrived and any(row.decodes for row in scheduler.running):
                break
        deciding = [row for row in scheduler.running if row.decodes]
        if deciding:
            steps = self.replies.steps(deciding)
            events += self._decode(scheduler.make_room(deciding, steps), steps)
        return events

    def _admit(self) -> list[Row]:
        """Who comes in; what he has said already counts where repetition is punished."""
        admitted = self.scheduler.admit()
        for row in admitted:
            if row.request.sampling.repetition_penalty != 1:
                self.memory = self.programs.mark(self.memory, row.lane, row.place, row.tokens(0, row.length))
        return admitted

    def _decode(self, deciding: list[Row], steps: int) -> list[Event]:
        events: list[Event] = []
        if not deciding:
            return events
        self.memory = self.replies.decode(self.memory, deciding, steps)
        for row in deciding:
            self._generated_tokens += row.length - 1 - row.computed
            self.scheduler.advance(row, row.length - 1)
            events += row.writer.take_events()
            if row.writer.done:
                self.scheduler.leave(row)
                events.append(Finished(row.writer.completion()))
        return events

    # The whole

    def stats(self) -> EngineStats:
        scheduler, sounds = self.scheduler, self.prompts.sounds
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_total=sum(pool.total for pool in scheduler.pools),
            pages_used=sum(pool.used for pool in scheduler.pools),
            pages_cached=sum(pool.kept for pool in scheduler.pools),
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=scheduler.cached_tokens,
            generated_tokens=self._generated_tokens,
            sounds_encoded=sounds.encoded,
            sounds_found=sounds.found,
            interruptions=scheduler.interruptions,
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
            silence = np.zeros((count, width), np.float32), np.full(count, width, np.int32)
            self.memory = self.programs.hear(self.memory, *silence, nowhere)

        def prefill(each: int, length: int):
            self.memory = self.programs.prefill(self.memory, *self.prompts.nothing(each, length))

        def decode(each: int):
            self.memory, _ = self.programs.decode(self.memory, self.replies.arrays({}, each, 0), 0)

        def mark():
            self.memory = self.programs.mark(self.memory, 0, 0, np.zeros(0, np.int32))

        for each in self.replies.row_buckets:
            yield f"decode {each}", functools.partial(decode, each)
        for length in self.prompts.lengths:
            for each in self.prompts.rows_of(length):
                yield f"prefill {each} × {length}", functools.partial(prefill, each, length)
        for width in SOUND_WIDTHS:
            for count in SOUNDS_AT_ONCE:
                seconds = width / lengths.SAMPLE_RATE
                yield f"sound {count} × {seconds:.0f} s", functools.partial(hear, count, width)
        yield "mark", mark

    def update(self, model: StepAudio) -> None:
        """Takes another model's weights as a trainer holds them: they are laid out for this engine in memory, with
        no copy on disk. What was cached of the old ones is forgotten; rows that run compute theirs again.

        Raises:
          ValueError: a model of other sizes.
        """
        self.programs.update(self._hand_over(*nnx.split(model)))
        self.scheduler.forget_content()
        self.prompts.sounds.clear()

    def _handed_over(self, graphdef: nnx.GraphDef, state: nnx.State) -> dict:
        """A model's weights as the programs have theirs: one compiled pass, over the mesh one exchange."""
        own = laid_out(nnx.merge(graphdef, state), self.options, self.programs.rules)
        return self.programs.alike(nnx.to_pure_dict(nnx.state(own)))

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
