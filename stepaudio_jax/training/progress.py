"""How far a run is, on a terminal as a bar with rate and time left, elsewhere as a line now and then."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 100
"""Most lines of a whole run where there is no terminal."""


class Bar:
    def __init__(self, console: Console, steps: int, done: int = 0):
        columns = (
            TextColumn("{task.completed}/{task.total} steps"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._console, self._steps, self._told = console, steps, done
        self._progress = Progress(*columns, console=console, disable=console.quiet or not console.is_terminal)
        self._task = self._progress.add_task("train", total=steps, completed=done, loss=float("nan"), rate=0.0)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def show(self, values: Mapping[str, float]) -> None:
        """The metrics of a logged step."""
        step, rate = int(values["step"]), values["tokens_per_second"]
        self._progress.update(self._task, loss=values["loss"], rate=rate)
        if not self._console.is_terminal and step - self._told >= self._steps / LINES:
            self._told = step
            self._console.print(
                f"step {step}/{self._steps}  loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}  "
                f"{rate:.0f} tokens/s  {values['seconds']:.0f} s"
            )
