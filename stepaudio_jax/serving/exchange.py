"""One request and its answer over HTTP: limits, time, a client that goes away, events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from stepaudio_jax.serving.errors import ApiError, shown, to_api_error
from stepaudio_jax.serving.service import Service

T = TypeVar("T")
log = logging.getLogger(__name__)

LINGER_SECONDS = 1.0
"""How long a refused request is still read: a client that is cut off while it sends may never see the answer."""

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of events: proxies are to pass them on as they come."""


class Reply:
    """The way back to the client.

    Attributes:
      started: the status is on its way, and can no longer become another.
      streaming: events are.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.started = self.streaming = False
        self._scope, self._receive, self._send = scope, receive, send

    async def json(self, content: dict[str, Any]):
        await self.whole(JSONResponse(content))

    async def whole(self, response: Response):
        self.started = True
        await response(self._scope, self._receive, self._send)

    async def events(self, events: AsyncIterator[dict[str, Any] | str]):
        """Server-sent events: objects as data, text as comments, which keep a connection alive."""
        response = Response(headers=HEADERS, media_type="text/event-stream")
        headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
        self.started = self.streaming = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(events) as source:  # type: ignore[type-var]
            async for event in source:
                line = f": {event}" if isinstance(event, str) else f"data: {json.dumps(event, ensure_ascii=False)}"
                await self._more(f"{line}\n\n")
        await self._end()

    async def fail(self, error: ApiError):
        """Ends events in an error, as vLLM does; a client that reads nothing is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._more(f"data: {json.dumps(error.body())}\n\n")
                await self._end()

    async def _end(self):
        await self._more("data: [DONE]\n\n", more=False)

    async def _more(self, text: str, more: bool = True):
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})


class Exchange(Response, Generic[T]):
    """What an endpoint returns: reads the body, then has it answered. Everything a request holds, its place and its
    rows in the engine, is given back when this ends, however it ends."""

    def __init__(
        self,
        service: Service,
        read: Callable[[Service, Request], Awaitable[T]],
        respond: Callable[[Service, T, Reply], Coroutine[Any, Any, None]],
    ):
        self.service, self._read, self._respond = service, read, respond
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        body = _Body(receive, self.service.settings.max_body_bytes)
        reply = Reply(scope, receive, send)
        try:
            request = Request(scope, body.receive)
            self.service.check_key(request)
            with self.service.admit():
                async with asyncio.timeout(self.service.settings.request_seconds):
                    body.check_length(request)
                    asked = await self._read(self.service, request)
                    await _while_connected(receive, self._respond(self.service, asked, reply))
        except ClientDisconnect:
            log.debug("the client has gone")
        except Exception as error:
            if isinstance(error, TimeoutError):
                error = self._too_slow(body)
            failure = to_api_error(error)
            if reply.streaming:
                return await reply.fail(failure)
            if not reply.started:
                await body.discard(scope)
            raise failure from error

    def _too_slow(self, body: _Body) -> ApiError:
        seconds = f"{self.service.settings.request_seconds:g} s that a request may take"
        if not body.ended:
            return ApiError(f"the body did not arrive within the {seconds}", status=408, code="timeout")
        return ApiError(f"no answer within the {seconds}; ask for fewer tokens", status=504, code="timeout")


class _Body:
    """Counts what comes in, and refuses what is too much before it is all there."""

    def __init__(self, receive: Receive, limit: int):
        self.ended = False
        self._receive, self._limit, self._size = receive, limit, 0

    def check_length(self, request: Request):
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            raise self._too_large(f"{int(length)} bytes")

    async def receive(self) -> Message:
        message = await self._receive()
        self.ended = not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large("more")
        return message

    async def discard(self, scope: Scope):
        """Reads on for a moment, and forgets it."""
        if any(name == b"expect" for name, _ in scope["headers"]):
            return  # such a client waits to be asked for its body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.ended:
                    self.ended = not (await self._receive()).get("more_body", False)

    def _too_large(self, found: str) -> ApiError:
        message = f"the body: expected at most {self._limit} bytes, found {found}; send shorter or compressed sound"
        return ApiError(message, status=413, code="request_too_large")


async def read_json(request: Request) -> bytes:
    """The body of a request that says it is JSON: a web page elsewhere cannot say so unasked."""
    check_content_type(request, "application/json")
    return await request.body()


def check_content_type(request: Request, expected: str):
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != expected:
        message = f"Content-Type: expected {expected}, found {shown(found) if found else 'none'}"
        raise ApiError(message, status=415, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"Content-Encoding: expected none, found {shown(encoding)}"
        raise ApiError(message, status=415, code="unsupported_media_type")


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]):
    """Does the work, but ends it as soon as the client goes.

    Raises:
      ClientDisconnect: it has gone.
    """

    async def watch():
        while (await receive())["type"] != "http.disconnect":
            pass

    doing = asyncio.create_task(work)
    tasks = (doing, asyncio.create_task(watch()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        doing.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
