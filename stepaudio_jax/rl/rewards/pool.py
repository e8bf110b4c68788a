"""The runner's side of worker processes: one of them, and a batch of tasks over several."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from stepaudio_jax.rl.rewards.sample import Scored
from stepaudio_jax.rl.rewards.worker import HEADER, LONGEST_REPLY, READY, send

START_SECONDS = 60.0
MOST_FAILED_STARTS = 3
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from stepaudio_jax.rl.rewards.worker import main
main(*json.loads(sys.argv[2]))
"""


@dataclasses.dataclass(frozen=True)
class Task:
    """A message to a worker, and how long its reward may take."""

    index: int
    message: bytes
    seconds: float


class Worker:
    """One process, started with a fresh interpreter and in a session of its own; jax, if a reward imports it, sees the
    CPU alone.

    Attributes:
      task: what it is working on.
      deadline: when it will have taken too long for that, or for starting (time.monotonic).
      ready: it has started.
    """

    def __init__(self, folder: str, memory: int | None):
        """`folder`: for temporary files, which outlive a process that was killed."""
        self.channel, theirs = socket.socketpair()
        with theirs:
            arguments = json.dumps([theirs.fileno(), os.getpid(), memory])
            paths = json.dumps([path for path in sys.path if isinstance(path, str)])
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, paths, arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                | os.environ
                | {"JAX_PLATFORMS": "cpu", "TMPDIR": folder},
            )
        self.task: Task | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.ready = False
        self._gone = False
        self._received = bytearray()

    def begin(self, task: Task) -> None:
        """Hands it a task. Raises OSError where it does not take it in time, or is dead."""
        self.task = task
        seconds = task.seconds if self.ready else START_SECONDS
        self.channel.settimeout(seconds)
        send(self.channel, task.message)
        self.deadline = time.monotonic() + seconds if self.ready else self.deadline

    def receive(self) -> Iterator[bytes]:
        """Whole messages, after the selector has said that there is something; ends it where there is not.

        Raises:
          EOFError: it has closed its end, or is dead.
          ValueError: something that is no message.
        """
        try:
            piece = self.channel.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            raise EOFError
        self._received += piece
        while len(self._received) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._received)
            if size > LONGEST_REPLY:
                raise ValueError(f"a message of {size} bytes")
            if len(self._received) < HEADER.size + size:
                return
            message = bytes(self._received[HEADER.size : HEADER.size + size])
            del self._received[: HEADER.size + size]
            yield message

    def is_gone(self) -> bool:
        """Has the process ended without closing its end of the socket, which a child of its own may hold? Says so from
        the second time on, for its last message may still be there."""
        gone, self._gone = self._gone, self.has_ended()
        return gone

    def has_ended(self) -> bool:
        """Looks without taking note, so that the number of its process group stays its own until `kill`."""
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> str:
        """Ends it and all of its session; says how the process ended."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of a group that has ended
                os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.channel.close()
        return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


class Batch:
    """Tasks being worked off by several workers."""

    def __init__(
        self,
        tasks: Iterable[Task],
        idle: list[Worker],
        count: int,
        start: Callable[[], Worker],
        deadline: float,
        done: Callable[[int, Scored], None],
    ):
        """
        Args:
          idle: workers to take before new ones are started, at most `count` in all; those that are well are put back.
          deadline: when what is not done yet is given up (time.monotonic).
          done: called with the index and the outcome of each task, once.
        """
        self._waiting, self._idle, self._count, self._start = collections.deque(tasks), idle, count, start
        self._deadline, self._done = deadline, done
        self._busy: set[Worker] = set()
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Works until all is done or given up. Raises RuntimeError where workers do not start."""
        try:
            while (self._waiting or self._busy) and time.monotonic() < self._deadline:
                self._hand_out()
                self._listen()
                self._expire()
            for task in [*(worker.task for worker in self._busy if worker.task), *self._waiting]:
                self._done(task.index, Scored(None, "hung: the time for the whole batch was over"))
        finally:
            for worker in list(self._busy):  # of those left here nobody knows what they are doing
                self._end(worker)
            self._selector.close()

    def _hand_out(self) -> None:
        while self._waiting and len(self._busy) < self._count:
            worker = self._idle.pop() if self._idle else self._start()
            if worker.ready and worker.has_ended():  # it died with nothing to do
                worker.kill()
                continue
            self._busy.add(worker)
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)
            try:
                worker.begin(self._waiting.popleft())
            except OSError as error:
                worker.ready = False  # it took no task, so the task is not to blame
                self._fail(worker, str(error))

    def _listen(self) -> None:
        """Waits for a message or the next time limit, and takes what has come."""
        limit = min([self._deadline, *(worker.deadline for worker in self._busy)]) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, min(limit, 1.0))):
            worker: Worker = key.data
            try:
                for message in worker.receive():
                    if self._take(worker, message):
                        break
            except EOFError:
                self._fail(worker, "died: the reward's process ended with {}")
            except (ValueError, TypeError) as error:
                self._fail(worker, f"garbage: the reward's process sent {error}")

    def _take(self, worker: Worker, message: bytes) -> bool:
        """Takes a worker's greeting, or its outcome: then it has no task any more, and True is returned."""
        assert worker.task is not None
        if not worker.ready:
            if message != READY:
                raise ValueError("no greeting")
            worker.ready, self._failed_starts = True, 0
            worker.deadline = time.monotonic() + worker.task.seconds
            return False
        value, error, notes = json.loads(message)
        scored = Scored(value, error, tuple(notes))
        self._done(worker.task.index, scored)
        self._selector.unregister(worker.channel)
        self._busy.remove(worker)
        self._idle.append(worker)
        return True

    def _expire(self) -> None:
        now = time.monotonic()
        for worker in list(self._busy):
            if worker.deadline <= now:
                seconds = worker.task.seconds if worker.ready and worker.task else START_SECONDS
                self._fail(worker, f"hung: no value within {seconds:g} s")
            elif worker.is_gone():
                self._fail(worker, "died: the reward's process ended with {}")

    def _fail(self, worker: Worker, error: str) -> None:
        """Ends a worker, for an error in which "{}" is how it ended. Its task gets the error, or, where the worker had
        not even started, another worker."""
        error = error.replace("{}", self._end(worker))
        assert worker.task is not None
        if worker.ready:
            self._done(worker.task.index, Scored(None, error))
            return
        self._waiting.appendleft(worker.task)
        self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise RuntimeError(f"reward workers: {self._failed_starts} in a row did not start; the last: {error}")

    def _end(self, worker: Worker) -> str:
        self._busy.remove(worker)
        self._selector.unregister(worker.channel)
        return worker.kill()
