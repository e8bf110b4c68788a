"""A window of steps under JAX's profiler: asked for on the command line, or by SIGUSR1 while a run goes on.

    stepaudio train … --profile=20:25      traces the steps from 20 to before 25
    kill -s USR1 PID                       traces the next five

The traces are in workdir/profile; TensorBoard's profile plugin and xprof read them.
"""

from __future__ import annotations

import re

import jax
from etils import epath

STEPS = 5
"""Traced after SIGUSR1."""


def parse_window(text: str) -> tuple[int, int]:
    """START:STOP. Raises ValueError for anything else, or for no step."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    window = (int(found[1]), int(found[2])) if found else (1, 0)
    if not 1 <= window[0] < window[1]:
        raise ValueError(f'--profile: expected START:STOP with 1 <= START < STOP, such as 20:25, found "{text}"')
    return window


class Profiler:
    def __init__(self, folder: epath.Path, window: tuple[int, int] | None = None):
        self._folder, self._window, self._running = folder, window, False

    def before(self, step: int, wanted: bool = False) -> bool:
        """Starts or stops the trace, before a step. Returns whether it took up what was wanted.

        Args:
          wanted: from this step on, whatever the window was.
        """
        if wanted and not self._running:
            self._window = (step, step + STEPS)
        start, stop = self._window or (0, 0)
        if not self._running and start <= step < stop:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= stop:
            self.close()
        return wanted

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running, self._window = False, None
