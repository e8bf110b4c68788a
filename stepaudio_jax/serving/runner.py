"""The engine in a thread of its own, and the asyncio side of it.

    runner = Runner(engine)
    runner.start()                                   from a running event loop
    async for event in runner.stream(prepared): …    cancelled in the engine where the loop is left

Only the thread touches the engine. What is asked of it lies in a queue that it empties between two steps; what it has
to tell goes to the event loop once per step, and from there to the stream of each request.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from stepaudio_jax.inference import Engine, Event, Finished, Prepared

log = logging.getLogger(__name__)

HOPELESS = 3
"""Steps that failed one after the other, after which the engine counts as dead: what it holds may be broken."""


class EngineError(RuntimeError):
    """The engine failed while a request ran, or no longer runs at all."""


class Draining(RuntimeError):
    """The server is about to stop, and takes nothing new."""


class Stream:
    """The events of requests that began together: `async for` ends when each has finished.

    Whoever leaves before must `close()` it, which cancels the rest.
    """

    def __init__(self, runner: Runner):
        self._runner = runner
        self._open: set[str] = set()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if not self._open:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Exception):
            self.close()
            raise event
        if isinstance(event, Finished):
            self._open.discard(event.request_id)
        return event

    def close(self):
        """Cancels what has not finished; may be called more than once."""
        self._drop(set(self._open))

    def _drop(self, ids: set[str]):
        self._open -= ids
        self._runner._cancel(ids)

    def _put(self, event: Event | Exception):
        self._events.put_nowait(event)


class Runner:
    """Owns the engine's thread.

    Attributes:
      stats: the engine's, as of its latest step.
      failures: how often the engine raised.
      draining: nothing new is taken.
      on_start: is told how many seconds a request has waited, from the engine's thread.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.stats = engine.stats()
        self.failures = self._failed_in_a_row = 0
        self.draining = False
        self.on_start: Callable[[float], None] = lambda seconds: None
        self._broken: Exception | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}  # of the event loop, as is the next
        self._adding: set[asyncio.Future[None]] = set()
        self._running: dict[str, float | None] = {}  # of the thread: what has not finished; since when, if it waits
        self._thread: threading.Thread | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def alive(self) -> bool:
        return self._broken is None and self._thread is not None and self._thread.is_alive()

    @property
    def running(self) -> int:
        """Requests that somebody waits for."""
        return len(self._streams)

    def start(self):
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def close(self):
        """Ends the thread after its present step; what still runs fails."""
        self.draining = True
        self._fail_streams(Draining("the server has stopped"))
        self._commands.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def drain(self, seconds: float):
        """Takes nothing new, waits for what runs, and after so many seconds cancels the rest."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("%d requests did not end within %g s and are cancelled", len(self._streams), seconds)
            self._fail_streams(Draining("the server is stopping"))

    async def submit(self, prepared: Sequence[Prepared], stream: Stream | None = None) -> Stream:
        """Hands requests to the engine, all or none. Their events come from the stream that is given, or a new one.

        Raises:
          QueueFull: too many wait already.
          Draining, EngineError: the server is stopping, or the engine has died.
        """
        if self.draining:
            raise Draining("the server is stopping")
        if not self.alive:
            raise EngineError("the engine does not run")
        ids = {each.request.id for each in prepared}
        stream = stream or Stream(self)
        stream._open |= ids
        added: asyncio.Future[None] = self._loop.create_future()
        self._streams |= dict.fromkeys(ids, stream)
        self._adding.add(added)
        self._idle.clear()
        self._commands.put(lambda: self._add(prepared, added))
        try:
            await added
        except BaseException:  # refused, or whoever waited has gone
            stream._drop(ids)
            raise
        finally:
            self._adding.discard(added)
        return stream

    async def stream(self, prepared: Prepared) -> AsyncIterator[Event]:
        """The events of one request, cancelled where the caller stops listening."""
        stream = await self.submit([prepared])
        try:
            async for event in stream:
                yield event
        finally:
            stream.close()

    # On the event loop.

    def _cancel(self, ids: Iterable[str]):
        ids = [request_id for request_id in ids if self._forget(request_id)]
        if ids:
            self._commands.put(lambda: self._cancel_in_engine(ids))

    def _forget(self, request_id: str) -> bool:
        known = self._streams.pop(request_id, None) is not None
        if not self._streams:
            self._idle.set()
        return known

    def _deliver(self, events: list[Event]):
        for event in events:
            if stream := self._streams.get(event.request_id):  # else cancelled meanwhile
                stream._put(event)
                if isinstance(event, Finished):
                    self._forget(event.request_id)

    def _fail_streams(self, error: Exception, ids: Iterable[str] | None = None):
        ids = list(self._streams if ids is None else ids)
        for stream in {stream for request_id in ids if (stream := self._streams.get(request_id))}:
            stream._put(error)
        self._cancel(ids)

    def _die(self, error: Exception):
        for added in self._adding:
            _settle(added, error)
        self._fail_streams(error)

    # On the engine's thread.

    def _run(self):
        try:
            while True:
                if not self._obey():
                    break
                if self.engine.has_work:
                    self._step()
        except Exception as error:
            log.critical("the engine's thread has ended", exc_info=error)
            self._broken = error
            self._tell(self._die, EngineError("the engine has died"))

    def _obey(self) -> bool:
        """Does what was asked; waits for something where the engine has no work. False: the thread is to end."""
        try:
            while True:
                self.stats = self.engine.stats()
                command = self._commands.get(block=not self.engine.has_work)
                if command is None:
                    for request_id in self._running:
                        self.engine.cancel(request_id)
                    return False
                command()
        except queue.Empty:
            return True

    def _add(self, prepared: Sequence[Prepared], added: asyncio.Future[None]):
        ids = []
        try:
            for each in prepared:
                self.engine.add(each)
                ids.append(each.request.id)
            self._running |= dict.fromkeys(ids, time.perf_counter())
            self._tell(_settle, added, None)
        except Exception as error:  # a full queue, which the one who asked hears of
            for request_id in ids:
                self.engine.cancel(request_id)
            self._tell(_settle, added, error)

    def _cancel_in_engine(self, ids: Sequence[str]):
        for request_id in ids:
            self._running.pop(request_id, None)
            self.engine.cancel(request_id)

    def _step(self):
        start = time.perf_counter()
        try:
            events = self.engine.step()
        except Exception as error:
            log.exception("a step of the engine failed; %d requests fail with it", len(self._running))
            self.failures += 1
            self._failed_in_a_row += 1
            failed, self._running = self._running, {}
            for request_id in failed:
                self.engine.cancel(request_id)
            failure = EngineError("the engine failed at a step")
            failure.__cause__ = error
            self._tell(self._fail_streams, failure, failed)
            if self._failed_in_a_row == HOPELESS:
                raise
            return
        self._failed_in_a_row = 0
        done = [event.request_id for event in events if isinstance(event, Finished)]
        for request_id in (*self.engine.running, *done):
            if (since := self._running.get(request_id)) is not None:
                self._running[request_id] = None
                self.on_start(start - since)
        for request_id in done:
            self._running.pop(request_id, None)
        if events:
            self._tell(self._deliver, events)

    def _tell(self, what: Callable[..., None], *args: object):
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # the event loop has closed: nobody listens any more
            log.debug("the event loop has closed")


def _settle(future: asyncio.Future[None], error: Exception | None):
    if future.done():  # whoever waited has gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
