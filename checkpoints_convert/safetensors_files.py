"""safetensors files, streamed: the header of one, its tensors as views of the mapped file, and a file written in place.

The format: the header's length in 8 bytes, little endian; a JSON header {name: {dtype, shape, data_offsets}}; the
tensors' bytes, back to back (https://huggingface.co/docs/safetensors). The library reads and writes whole tensors,
and a file only at once; released tensors reach 1.6 GB and shards 5 GB, more than we may hold.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000


class Tensor(NamedTuple):
    """Type and shape of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Along the first axis; a scalar has one."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.nbytes // max(1, self.rows)


class SafetensorsError(ValueError):
    """A file that is not whole or not safetensors; the message names it."""


class Entry(NamedTuple):
    """A tensor in a header: `start` and `stop` count bytes from the end of the header."""

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, stop = map(int, data_offsets)
    return Entry(str(dtype), tuple(map(int, shape)), start, stop)


class Reader:
    """A file that is mapped, not read.

    Attributes:
      tensors: type and shape of each tensor, in the file's order.

    Raises:
      SafetensorsError: truncated, not safetensors, or of a type that no released weight has.
      OSError: missing or unreadable.
    """

    def __init__(self, path: Path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise SafetensorsError(f"{path}: truncated or not a safetensors file ({size} bytes)")
            try:
                header = dict(json.loads(file.read(length)))
                header.pop("__metadata__", None)
                entries = {name: _entry(**about) for name, about in header.items()}
            except (ValueError, KeyError, TypeError) as error:
                raise SafetensorsError(f"{path}: not a safetensors file (its header: {error})") from None
        data = size - 8 - length
        expected = max((entry.stop for entry in entries.values()), default=0)
        if data != expected:
            raise SafetensorsError(f"{path}: truncated or padded: expected {expected + 8 + length} bytes, found {size}")
        self.tensors: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}
        for name, (code, shape, start, stop) in entries.items():
            if code not in DTYPES:
                raise SafetensorsError(f"{path}: {name} is {code}; expected one of {', '.join(DTYPES)}")
            tensor = Tensor(DTYPES[code], shape)
            if start < 0 or min(shape, default=0) < 0 or stop - start != tensor.nbytes:
                raise SafetensorsError(f"{path}: {name} has {stop - start} bytes, its shape {shape} asks for others")
            self.tensors[name] = tensor
            self._starts[name] = 8 + length + start
        at = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if entry.start != at:
                raise SafetensorsError(f"{path}: {name} overlaps another tensor or leaves a gap")
            at = entry.stop
        self.path = path
        self._bytes = np.memmap(path, np.uint8, "r")

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along the first axis, a view of the mapped file."""
        tensor = self.tensors[name]
        begin = self._starts[name]
        rows = self._bytes[begin + start * tensor.row_bytes : begin + stop * tensor.row_bytes]
        return rows.view(tensor.dtype).reshape(stop - start, *tensor.shape[1:])


class Writer:
    """A file of known tensors whose rows are written in any order and from several threads.

    One that exists is gone on with; its header must be the same.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        entries, at = {}, 0
        for name, tensor in tensors.items():
            entries[name] = {
                "dtype": CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
        text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8
        header = len(text).to_bytes(8, "little") + text
        self._tensors = dict(tensors)
        self._starts = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(self._file, header, 0)
        os.ftruncate(self._file, len(header) + at)

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Rows from `start` on along the first axis."""
        tensor = self._tensors[name]
        at = self._starts[name] + start * tensor.row_bytes
        data = np.ascontiguousarray(rows, tensor.dtype).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written

    def sync(self) -> None:
        """What was written is on the disk when this returns."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
