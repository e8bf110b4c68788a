"""Being told to stop: SIGTERM, ctrl-C, the notice before a preemption. And SIGUSR1: a profile, please.

What follows a request depends on what the trainer does:

  before its first step is done (reading, compiling)    it leaves at once; there is nothing to lose
  in a step                                             the step is finished, its state saved
  waiting for data, or evaluating                       the wait is broken off, the state saved
  asked a second time                                   it leaves at once

Python runs a handler only between two of its instructions, so not while XLA compiles. Here a thread reads the signals,
which C writes to a pipe as they come (signal.set_wakeup_fd).

Several processes must stop after the same step. There JAX's own service takes SIGTERM, which is also what comes before
a preemption: it tells all processes, which agree on a step (multihost_utils.reached_preemption_sync_point).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop. `exit_code` is that of a program which the signal ended."""

    def __init__(self, number: int):
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class Interrupts:
    """Listens while it is entered. Only in the main thread; elsewhere it hears nothing."""

    def __init__(self):
        self.nothing_to_lose = True
        """Until the first step is done."""
        self.profile_wanted = False
        self._asked: int | None = None
        self._heard = False  # by the thread, which must not take the handler's note of a signal for a second one
        self._breakable = False
        self._several = jax.process_count() > 1

    def stop_after(self, step: int) -> Stopped | None:
        """Whether to stop after this step. Every process calls it once after each, and all hear the same."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            return Stopped(self._asked or signal.SIGTERM)
        if not self._several and self._asked is not None:
            return Stopped(self._asked)
        return None

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """What is done inside may be broken off.

        Raises:
          Stopped: it was.
        """
        if self._several:  # the others would wait for this one
            yield
            return
        self._breakable = True
        try:
            if self._asked is not None:
                raise Stopped(self._asked)
            yield
        finally:
            self._breakable = False

    def __enter__(self) -> Interrupts:
        self._listening = threading.current_thread() is threading.main_thread()
        if not self._listening:
            return self
        heard = [signal.SIGINT, signal.SIGUSR1] + ([] if self._several else [signal.SIGTERM])
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        if not self._listening:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._written.close()  # ends the thread
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        """In a thread of its own: also while the main one is in compiled code."""
        while received := self._read.recv(1):
            number = received[0]
            if number == signal.SIGUSR1:
                self.profile_wanted = True
            elif number in (signal.SIGINT, signal.SIGTERM):
                if self.nothing_to_lose or self._heard:
                    _leave(number, "at once" if self._heard else "before its first step")
                self._heard, self._asked = True, number
                if self._several and number == signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGTERM)  # for JAX's service

    def _handle(self, number: int, _) -> None:
        """In the main thread, between two instructions."""
        if number == signal.SIGUSR1:
            return
        self._asked = number
        if self._breakable:
            self._breakable = False
            raise Stopped(number)


def _leave(number: int, when: str) -> None:
    end = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
    sys.stderr.write(f"{end}\nstopped {when} by {signal.Signals(number).name}\n")
    sys.stderr.flush()
    os._exit(128 + number)
