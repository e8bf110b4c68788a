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

from stepaudio_jax.inference import AudioProgress, Engine, Event, Finished, QueueFull, Request, TextDelta
from stepaudio_jax.serving.errors import ApiError, busy, shown
from stepaudio_jax.serving.hearing import Hearing
from stepaudio_jax.serving.metrics import Metrics
from stepaudio_jax.serving.runner import Draining, EngineError, Runner, Stream
from stepaudio_jax.serving.scores import TokenNames
from stepaudio_jax.serving.settings import Settings

T = TypeVar("T")

AUDIO_TOKENS_PER_SECOND = 12.5
"""MODEL.md §4."""


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
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(found):
            return found.index(True) + 1
        raise ApiError(
            f"Authorization: expected Bearer with a key of this server, found {'another' if key else 'none'}",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

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

    def hearing(self) -> Hearing:
        """What decodes the sound of one request."""
        seconds = self.settings.max_audio_seconds
        most = self.positions / AUDIO_TOKENS_PER_SECOND if seconds is None else seconds
        return Hearing(most, self.settings.allow_files)

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
    async def run(self, requests: Sequence[Request], heard: float = 0.0) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of some requests that belong together; whatever has not finished in the end is cancelled.

        Raises:
          PromptError, AudioError: the engine cannot take one of them.
          ApiError: 429, 503 or 500: it cannot take them now.
        """
        started = time.perf_counter()
        prepared = await self.in_worker(lambda: [self.engine.prepare(request) for request in requests])
        try:
            stream = await self.runner.submit(prepared)
        except QueueFull as error:
            raise busy(str(error), "queue_full") from None
        except Draining as error:
            raise busy(str(error), "draining", 503) from None
        self.metrics.audio_seconds.inc(heard)
        try:
            yield self._events(stream, started)
        finally:
            stream.close()

    async def _events(self, stream: Stream, started: float) -> AsyncIterator[Event]:
        """A stream's events, timed."""
        last: dict[str, float] = {}
        try:
            async for event in stream:
                if isinstance(event, TextDelta | Finished):
                    now = time.perf_counter()
                    self.metrics.tokens(event, now, started, last)
                yield event
        except Draining as error:
            raise busy(f"{error} before this request ended", "draining", 503) from None
        except EngineError as error:
            raise ApiError(f"{error}; the request may be sent again", status=500, code="engine_error") from None

    async def close(self):
        await self.runner.close()
        self._workers.shutdown(wait=False, cancel_futures=True)


def comment(event: Event) -> str | None:
    """A sign of life while long sound is heard, for a stream's comments."""
    if isinstance(event, AudioProgress) and event.total > 1:
        return f"heard {event.done} of {event.total} chunks of sound"
    return None
