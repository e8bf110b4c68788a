"""What is wrong with a sound: errors, and warnings that reach whoever sent it."""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator


class AudioError(ValueError):
    """Sound that cannot be used; the message is one line that names the file and the cause."""


class AudioTooLong(AudioError):
    """More sound than is allowed."""


class AudioWarning(UserWarning):
    """Sound that can be used, but that is probably not what was meant."""


class DamagedError(ValueError):
    """A file that contradicts itself; the message is the cause alone, without the file's name."""


_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("collected", default=None)


def warn(message: str) -> None:
    """Adds to what `collect_warnings` collects in this thread; without it, issues an AudioWarning."""
    if (collected := _collected.get()) is not None:
        collected.append(message)
    else:
        warnings.warn(message, AudioWarning, stacklevel=2)


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Gathers the warnings about sound that this thread loads meanwhile, instead of issuing them.

    `warnings.catch_warnings` cannot serve where several threads load sound: it changes the filters of all of them.
    """
    collected: list[str] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)
