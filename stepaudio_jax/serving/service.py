"""What the endpoints share: the engine's runner, the settings, a place for each request, threads for heavy work."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request as HttpRequest

from stepaudio_jax.inference import (
    AudioProgress,
    Engine,
    Event,
    Finished,
    Prepared,
    QueueFull,
    Request,
    SoundSplit,
    TextDelta,
    WindowFinished,
)
from stepaudio_jax.inference.audio_input import max_seconds
from stepaudio_jax.inference.long_audio import Answering, Plan
from stepaudio_jax.inference.types import SplitEvent
from stepaudio_jax.serving.errors import ApiError, busy, shown
from stepaudio_jax.serving.hearing import Hearing
from stepaudio_jax.serving.metrics import Metrics
from stepaudio_jax.serving.runner import Draining, EngineError, Runner, Stream
from stepaudio_jax.serving.scores import TokenNames
from stepaudio_jax.serving.settings import Settings

T = TypeVar("T")

RETRY_SECONDS = 0.25
"""Until a request that is under way asks again for a place in a full queue."""


class Service:
    """One engine and the requests to it.

    Attributes:
      taken: requests that have a place.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings = engine, settings
        self.tokenizer = engine.tokenizer
        self.runner = Runner(engine)
        self.metrics = Metrics(self.runner)
        self.names = TokenNames(self.tokenizer)
        self.taken = 0
        self.metrics.taken.set_function(lambda: self.taken)
        self.started = int(time.time())
        self.positions = engine.max_length
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._workers = ThreadPoolExecutor(settings.workers, thread_name_prefix="prepare")
        longest = max(map(len, self.tokenizer.backend.get_vocab()))
        self._max_text = longest * self.positions

    def check_key(self, request: HttpRequest) -> int:
        """Which key a request carries; 0 where none is asked for. The time it takes tells nothing.

        Raises:
          ApiError: 401.
        """
        if not self._keys:
            return 0
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (number := self.is_key(key)):
            return number
        raise ApiError(
            f"Authorization: expected Bearer with a key of this server, found {'another' if key else 'none'}",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def is_key(self, key: str) -> int:
        """Which of the server's keys it is, counted from 1; 0 for none."""
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = [hmac.compare_digest(digest, known) for known in self._keys]
        return found.index(True) + 1 if any(found) else 0

    def owner(self, request: HttpRequest, user: str | None) -> str:
        """Whose turn a request takes: users of one key are each their own."""
        return f"{self.check_key(request)}/{user or ''}"

    def check_model(self, name: str | None):
        """Raises ApiError, 404, for a name that is not this model's."""
        if name and name not in self.settings.model_names:
            known = ", ".join(self.settings.model_names)
            message = f"model: expected {known}, found {shown(name)}"
            raise ApiError(message, status=404, param="model", code="model_not_found")

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place among the requests, from the first byte of one to the last of its answer.

        Raises:
          ApiError: 503 while draining, 429 where there is no place.
        """
        if self.runner.draining:
            raise busy("the server is stopping", "draining", 503)
        if self.taken >= self.settings.max_requests:
            raise busy(f"{self.taken} requests are here already; come again later", "queue_full")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def in_worker(self, function: Callable[..., T], *args: object) -> T:
        """Runs what takes long in a thread beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *args)

    def hearing(self, *, split: bool = False) -> Hearing:
        """What decodes the sound of one request; `split` says that it need not fit into one prompt."""
        seconds = self.settings.max_split_seconds if split else self.settings.max_audio_seconds
        most = max_seconds(self.positions, split=split) if seconds is None else seconds
        advice = "" if split else '; long_audio: "split" has longer sound heard in windows'
        return Hearing(most, self.settings.allow_files, advice)

    def check_text(self, size: int, param: str):
        """Refuses text that cannot fit, however well it is tokenised, before anyone tries."""
        if size > self._max_text:
            raise ApiError(
                f"{param}: {size} characters of text, more than the model's {self.positions} positions can hold; "
                "send less",
                param=param,
                code="context_length_exceeded",
            )

    @contextlib.asynccontextmanager
    async def run(self, requests: Sequence[Request], heard: float = 0.0) -> AsyncIterator[AsyncIterator[SplitEvent]]:
        """The events of some requests that belong together; whatever has not finished in the end is cancelled.

        Sound that does not fit is split where a request says so (`inference.long_audio`).

        Raises:
          PromptError, AudioError: the engine cannot take one of them.
          ApiError: 429, 503 or 500: it cannot take them now.
        """
        run = _Run(self)
        prepared = await self.in_worker(run.prepare, requests)
        try:
            stream = await self.runner.submit(prepared)
        except QueueFull as error:
            raise busy(str(error), "queue_full") from None
        except Draining as error:
            raise busy(str(error), "draining", 503) from None
        self.metrics.audio_seconds.inc(heard)
        try:
            yield self._events(run, stream)
        finally:
            stream.close()

    async def _events(self, run: _Run, stream: Stream) -> AsyncIterator[SplitEvent]:
        try:
            for split in run.splits:
                yield split.began
            async for event in stream:
                events, more = run.feed(event)
                for told in events:
                    yield told
                if more:
                    await self._submit_when_possible(await self.in_worker(run.prepare_more, more), stream)
        except Draining as error:
            raise busy(f"{error} before this request ended", "draining", 503) from None
        except EngineError as error:
            raise ApiError(f"{error}; the request may be sent again", status=500, code="engine_error") from None

    async def _submit_when_possible(self, prepared: Sequence[Prepared], stream: Stream):
        """Waits where the queue is full: what has been written so far is not to be lost."""
        while True:
            try:
                await self.runner.submit(prepared, stream)
                return
            except QueueFull:
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self):
        await self.runner.close()
        self._workers.shutdown(wait=False, cancel_futures=True)


class _Run:
    """Requests that belong together, those whose sound is split among them.

    Attributes:
      splits: of which each is several requests to the engine.
    """

    def __init__(self, service: Service):
        self.splits: list[Answering] = []
        self._engine, self._metrics = service.engine, service.metrics
        self._by_id: dict[str, Answering] = {}
        self._started, self._last = time.perf_counter(), {}

    def prepare(self, requests: Sequence[Request]) -> list[Prepared]:
        """What to hand to the engine first."""
        prepared = []
        for request in requests:
            if plan := Plan.of(self._engine, request):
                self.splits.append(Answering(plan))
                prepared += self._prepare_batch(self.splits[-1])
            else:
                prepared.append(self._engine.prepare(request))
        return prepared

    def prepare_more(self, split: Answering) -> list[Prepared]:
        """What to hand to the engine next."""
        self._started = time.perf_counter()
        return self._prepare_batch(split)

    def feed(self, event: Event) -> tuple[Sequence[SplitEvent], Answering | None]:
        """(what an event of the engine tells, one that now has more for the engine)."""
        if isinstance(event, TextDelta | Finished):
            self._metrics.tokens(event, time.perf_counter(), self._started, self._last)
        split = self._by_id.get(event.request_id)
        if split is None:
            return [event], None
        before = split.batch
        events = split.feed(event)
        return events, split if split.batch and split.batch is not before else None

    def _prepare_batch(self, split: Answering) -> list[Prepared]:
        self._by_id |= {request.id: split for request in split.batch}
        return [self._engine.prepare(request) for request in split.batch]


def comment(event: SplitEvent) -> str | None:
    """A sign of life while long sound is heard, for a stream's comments."""
    if isinstance(event, AudioProgress) and event.total > 1:
        return f"heard {event.done} of {event.total} chunks of sound"
    if isinstance(event, SoundSplit):
        return f"the sound is heard in {len(event.windows)} windows"
    if isinstance(event, WindowFinished):
        return f"answered window {event.number}"
    return None
