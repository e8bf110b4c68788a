"""Files without a name: what libsndfile and ffmpeg read instead of Python objects.

libsndfile reading from a Python object calls back into Python for every few bytes, and a hostile file has it do so
millions of times. From a file descriptor it reads by itself, while other threads run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, BinaryIO

BLOCK = 1 << 20
IN_MEMORY = 256 << 20
"""Most bytes of an unnamed file that lie in memory; a larger one lies in the folder for temporary files."""


@contextlib.contextmanager
def as_file(stream: IO[Any], size: int) -> Iterator[BinaryIO]:
    """A file of this machine with the bytes of a stream: the stream's own, where it has one. Read without a buffer, so
    that others may use its descriptor too."""
    try:
        own = stream.fileno()
    except (OSError, AttributeError):
        own = None
    if own is None:
        with unnamed(stream, [range(size)]) as file:
            yield file
    else:
        with open(own, "rb", buffering=0, closefd=False) as file:
            yield file


@contextlib.contextmanager
def unnamed(stream: IO[Any], pieces: Sequence[bytes | range]) -> Iterator[BinaryIO]:
    """A file of these pieces: bytes, or ranges of the bytes of a stream."""
    size = sum(map(len, pieces))
    with _in_memory() if size <= IN_MEMORY and hasattr(os, "memfd_create") else _on_disk() as file:
        for piece in pieces:
            for block in [piece] if isinstance(piece, bytes) else blocks(stream, piece.start, piece.stop):
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
        yield file


def _in_memory() -> BinaryIO:
    return os.fdopen(os.memfd_create("sound", os.MFD_CLOEXEC), "w+b", buffering=0)


def _on_disk() -> BinaryIO:
    return tempfile.TemporaryFile(buffering=0)  # pyright: ignore[reportReturnType]


def find(stream: IO[Any], wanted: bytes, start: int, stop: int) -> int | None:
    """Where some bytes are found first between `start` and `stop`."""
    tail, at = b"", start
    for block in blocks(stream, start, stop):
        data = tail + block
        if (found := data.find(wanted)) >= 0:
            return at - len(tail) + found
        tail, at = data[len(data) - len(wanted) + 1 :], at + len(block)
    return None


def blocks(stream: IO[Any], start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a stream from `start` to `stop` or its end."""
    while start < stop:
        stream.seek(start)
        block = stream.read(min(BLOCK, stop - start))
        if not block:
            return
        yield block
        start += len(block)
