"""The process around the application: its socket, and its end.

At SIGTERM or ctrl-C nothing new is taken (503, also from /health, so that a load balancer goes elsewhere), what runs
gets some seconds to end, the rest is cancelled, and the process leaves. A second signal leaves at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stepaudio_jax.serving.runner import Runner

KEEP_ALIVE_SECONDS = 75
"""That an idle connection stays open. Clients and load balancers keep theirs for 5 to 60 seconds; where a server closes
first, a request that is on its way is lost (uvicorn's 5 seconds are those of httpx)."""

WRITING_SECONDS = 5
"""For answers that have ended in the engine to reach their clients."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else can have any more, and that refuses connections until the server listens.

    Raises:
      OSError: the address is in use, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from None
    return made


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    app: FastAPI,
    bound: socket.socket,
    *,
    drain_seconds: float,
    access_log: bool = False,
    ready: Callable[[], None] = lambda: None,
):
    """Serves until a signal ends it; calls `ready` once it listens."""
    config = uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        timeout_graceful_shutdown=WRITING_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
    )
    _Server(config, app.state.runner, drain_seconds, ready).run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn's, but it goes on listening while it drains, to say so."""

    def __init__(self, config: uvicorn.Config, runner: Runner, drain_seconds: float, ready: Callable[[], None]):
        super().__init__(config)
        self._runner, self._drain_seconds, self._ready = runner, drain_seconds, ready
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    async def serve(self, sockets: list[socket.socket] | None = None):
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None):
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None):
        self._signals += 1
        if self._signals == 1 and self.started:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self.should_exit = self.force_exit = True

    def _begin(self):
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self):
        try:
            await self._runner.drain(self._drain_seconds)
        finally:
            self.should_exit = True
