"""A process that computes rewards, one after another, for a `RewardRunner`. It never imports jax by itself.

What comes over the socket is (reward, allow_code, sample) as multiprocessing sends objects; what goes back is JSON, so
that nothing a reward does can make the runner execute anything. Each message has its length before it, 4 bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from multiprocessing.reduction import ForkingPickler

from stepaudio_jax.rl.rewards.registry import describe, outcome, resolve
from stepaudio_jax.rl.rewards.sample import Scored

HEADER = struct.Struct("!I")
LONGEST_REPLY = 1 << 16
READY = b"ready"


def main(descriptor: int, parent: int, memory: int | None) -> None:
    """Serves until the other end is closed.

    Args:
      descriptor: of the socket.
      parent: the runner's process; this one dies with it.
      memory: most bytes of address space; None for no limit.
    """
    channel = socket.socket(fileno=descriptor)
    _die_with(parent, channel)
    if memory is not None and sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    own = os.getpid()
    send(channel, READY)
    while (message := _receive(channel)) is not None:
        scored = _score(message)
        if os.getpid() != own:
            os._exit(1)  # a fork that a reward made and let return
        send(channel, json.dumps([scored.value, scored.error, scored.notes]).encode())


def send(channel: socket.socket, message: bytes | memoryview) -> None:
    channel.sendall(HEADER.pack(len(message)) + message)


def _score(message: bytes) -> Scored:
    try:
        reward, allow_code, sample = ForkingPickler.loads(message)  # pyright: ignore[reportAttributeAccessIssue]
    except BaseException as error:
        return Scored(None, f"unsendable: a worker process cannot read it: {describe(error)}")
    try:
        resolved = resolve(reward, allow_code=allow_code)
    except BaseException as error:
        return Scored(None, f"raised: {describe(error)}")
    return outcome(resolved.function, sample, BaseException)


def _receive(channel: socket.socket) -> bytes | None:
    header = _exactly(channel, HEADER.size)
    return None if header is None else _exactly(channel, HEADER.unpack(header)[0])


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        if not (piece := channel.recv(min(size - len(data), 1 << 20))):
            return None
        data += piece
    return bytes(data)


def _die_with(parent: int, channel: socket.socket) -> None:
    """This process ends when the runner's does, whatever a reward is doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch():
        poll = select.poll()
        poll.register(channel, select.POLLHUP)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
