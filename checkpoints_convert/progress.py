"""The bar over long work: bytes done, rate, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextlib.contextmanager
def byte_bar(show: Console | None, what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Shows a bar on `show`, if there is one. Gives a function to report bytes to, from any thread."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show, transient=True, disable=show is None or not show.is_terminal) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda size: progress.advance(task, size)
