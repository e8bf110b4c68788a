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
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from stepaudio_jax.inputs import InputError, integer_problem, open_regular, parse_json, shown
from stepaudio_jax.inputs.files import MAX_JSON_BYTES

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_AXES = 8
MAX_BYTES = 1 << 45
BUFFER = ".rotary_emb.inv_freq"
"""What older files keep of the rotary embedding: it follows from the config, and transformers leaves it out too."""


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight but was made from the config, and is made again."""
    return f".{name}".endswith(BUFFER)


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


class SafetensorsError(InputError):
    """A file that is not whole or not safetensors; the message names it."""


class Entry(NamedTuple):
    """A tensor in a header: `start` and `stop` count bytes from the end of the header."""

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _entry(name: str, about: Any) -> Entry:
    """Raises ValueError: not what the format asks for."""
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, found {shown(about)}")
    code, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(code, str):
        raise ValueError(f"{name}: dtype: expected text, found {shown(code)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise ValueError(f"{name}: shape: expected a list of at most {MAX_AXES} sizes, found {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name}: data_offsets: expected two numbers, found {shown(offsets)}")
    for field, value in (*(("shape", size) for size in shape), *(("data_offsets", at) for at in offsets)):
        if (problem := integer_problem(value, 0, MAX_BYTES)) is not None:
            raise ValueError(f"{name}: {field}: {problem}")
    if offsets[0] > offsets[1]:
        raise ValueError(f"{name}: data_offsets: the first is beyond the second: {offsets}")
    return Entry(code, tuple(shape), *offsets)


class Reader:
    """A file that is mapped, not read.

    Attributes:
      tensors: type and shape of each tensor, in the file's order, without buffers that are made anew (`is_buffer`).

    Raises:
      SafetensorsError: truncated, not safetensors, or of a type that no released weight has.
      InputError: no regular file of its folder (inputs/files.py).
      OSError: missing or unreadable.
    """

    def __init__(self, path: Path):
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise SafetensorsError(f"{path}: truncated or not a safetensors file ({size} bytes)")
            if length > MAX_JSON_BYTES:
                raise SafetensorsError(f"{path}: a header of {length:,} bytes; expected at most {MAX_JSON_BYTES:,}")
            header = parse_json(file.read(length), f"{path}: not a safetensors file: its header", unique=True)
            try:
                header = dict(header)
                header.pop("__metadata__", None)
                entries = {name: _entry(name, about) for name, about in header.items()}
            except (ValueError, TypeError) as error:
                raise SafetensorsError(f"{path}: not a safetensors file (its header: {error})") from None
            self._bytes = np.memmap(file, np.uint8, "r")
        data = size - 8 - length
        expected = max((entry.stop for entry in entries.values()), default=0)
        if data != expected:
            raise SafetensorsError(f"{path}: truncated or padded: expected {expected + 8 + length} bytes, found {size}")
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}
        for name, (code, shape, start, stop) in entries.items():
            if is_buffer(name):
                continue
            if code not in DTYPES:
                raise SafetensorsError(f"{path}: {name} is {code}; expected one of {', '.join(DTYPES)}")
            tensor = Tensor(DTYPES[code], shape)
            if stop - start != tensor.nbytes:
                raise SafetensorsError(f"{path}: {name} has {stop - start} bytes, its shape {shape} asks for others")
            self.tensors[name] = tensor
            self._starts[name] = 8 + length + start
        at = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != at:
                raise SafetensorsError(f"{path}: {name} overlaps another tensor or leaves a gap")
            at = entry.stop

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
