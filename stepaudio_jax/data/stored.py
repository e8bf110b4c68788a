"""Stored data sets: dialogues with their sound inside, in ArrayRecord shards that are read at random.

A folder of them, whole when dataset.json is there; a record's bytes are those of records.py:

    records-00000-of-00012.arrayrecord …    the shards, records in the order of the input
    tokens.npy rejected_tokens.npy units.npy kind.npy    one row per record (lengths.py says what they count)
    dataset.json                            counts, and what the lengths were measured with
    bad.jsonl                               the records of the input that were set aside, each with its reason
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from stepaudio_jax.data.records import decode_mels, decode_sample, encode_sample
from stepaudio_jax.data.samples import RecordError, Sample, printable
from stepaudio_jax.data.tfds_folder import values_of

__all__ = ["DatasetError", "RecordWriter", "StoredDataset", "decode_sample", "encode_sample", "read_info"]

INFO = "dataset.json"
BAD = "bad.jsonl"
VERSION = 1
COLUMNS = {"tokens": np.int32, "rejected_tokens": np.int32, "units": np.int32, "kind": np.uint8}
WRAPPED = "record"
"""The feature that holds a record where shards hold one `tf.train.Example` each (beam.py)."""

WRITER_OPTIONS = "group_size:1,uncompressed"  # one record a read; FLAC does not compress further


class DatasetError(ValueError):
    """A stored data set that cannot be read or written; one line with the file and what is wrong with it."""


class RecordWriter:
    """Writes one shard. The file has its name only once it is whole: leave the `with` block without an error.

    Raises:
      DatasetError: a disk that is full, or a folder that cannot be written.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        folder = tempfile.gettempdir() if _is_remote(self._path) else self._path.parent
        self._temporary = Path(folder) / f"{self._path.name}.unfinished-{os.getpid()}"
        self._writer = ArrayRecordWriter(str(self._temporary), WRITER_OPTIONS)

    def __enter__(self) -> RecordWriter:
        return self

    def write(self, record: bytes) -> None:
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise DatasetError(f"{self._path}: {_cause(error)}") from None

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._publish()
        except RuntimeError as problem:
            if kind is None:
                raise DatasetError(f"{self._path}: {_cause(problem)}") from None
        finally:
            self._temporary.unlink(missing_ok=True)

    def _publish(self) -> None:
        if not _is_remote(self._path):
            self._temporary.replace(self._path)
            return
        with self._temporary.open("rb") as source, self._path.open("wb") as target:  # an object appears when closed
            shutil.copyfileobj(source, target)


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)


def _cause(error: RuntimeError) -> str:
    """The library's "write() failed: No space left on device; writing /a/b; at byte 0", without the rest."""
    return f"writing failed ({str(error).split(';')[0].removeprefix('write() failed: ')})"


@dataclasses.dataclass
class Shard:
    """A file and its number of records, in the words of array_record, which then need not open it to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class StoredDataset:
    """A folder written by `stepaudio data build`, read at random, by any number of threads at once.

    Attributes:
      info: dataset.json.
      tokens, rejected_tokens, units: int32 [records]; kind: uint8 [records] (lengths.py).

    Raises:
      DatasetError: a folder that is missing, not whole, or whose files disagree.
    """

    tokens: np.ndarray
    rejected_tokens: np.ndarray
    units: np.ndarray
    kind: np.ndarray

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.info = read_info(self.folder)
        self._length = int(self.info["records"])
        for name, dtype in COLUMNS.items():
            setattr(self, name, self._column(name, dtype))
        self._wrapped = any("wrapped" in shard for shard in self.info["shards"])
        shards = [
            Shard(str(self.folder / shard["name"]), 0, shard["records"], shard["records"])
            for shard in self.info["shards"]
            if shard["records"]
        ]
        for shard in shards:
            if not epath.Path(shard.filename).exists():
                raise DatasetError(f"{shard.filename}: no such file, but {INFO} names it")
        if sum(shard.take for shard in shards) != self._length:
            raise DatasetError(f"{self.folder / INFO}: records: expected the sum of the shards', found {self._length}")
        self._records = ArrayRecordDataSource(shards) if shards else []

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> bytes:
        """The bytes of a record. Raises IndexError, or RecordError for a damaged shard."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.folder}: record {index} of {self._length}")
        try:
            data = self._records[index]
        except RuntimeError as error:  # with a checksum of its own, so what is read is what was written
            raise RecordError(f"{self.folder}:{index}: {error}") from None
        if not self._wrapped:
            return data
        try:
            return values_of(data)[WRAPPED][0]
        except (ValueError, KeyError, IndexError) as error:
            raise RecordError(f"{self.folder}:{index}: not a record in a tf.train.Example ({error!r})") from None

    def __getitem__(self, index: int) -> Sample:
        return decode_sample(self.read(index), f"{self.folder}:{index}")

    def mels(self, index: int) -> tuple[np.ndarray, ...]:
        """Stored log-mels, float32 [frames, 128] of each clip; empty where the build was not asked for them."""
        return decode_mels(self.read(index), f"{self.folder}:{index}")

    def _column(self, name: str, dtype: type) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            column = np.load(io.BytesIO(path.read_bytes()))
        except Exception as error:  # numpy raises many kinds of it, as its header is parsed as Python is
            raise DatasetError(f"{path}: cannot be read ({printable(str(error))})") from None
        if column.dtype != dtype or column.shape != (self._length,):
            raise DatasetError(
                f"{path}: expected {np.dtype(dtype)} [{self._length}], found {column.dtype} {list(column.shape)}"
            )
        return column


def read_info(folder: epath.Path) -> dict[str, Any]:
    """dataset.json of a stored data set. Raises DatasetError: none, broken, or of another version."""
    path = folder / INFO
    if not path.exists():
        raise DatasetError(f"{folder}: no {INFO}: not a stored data set, or one that `stepaudio data build` is writing")
    try:
        info = json.loads(path.read_text())
        version = info["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from None
    if version != VERSION:
        raise DatasetError(f"{path}: version: expected {VERSION}, found {printable(str(version))}; build the set again")
    _check_info(info, str(path))
    return info


def _check_info(info: dict[str, Any], path: str) -> None:
    """Raises DatasetError: a field that is read by others is missing, or of another type."""

    def check(holder: Any, name: str, kind: type, where: str = "") -> Any:
        if not isinstance(holder, dict) or type(holder.get(name)) is not kind:
            raise DatasetError(f"{path}: {where}{name}: expected {kind.__name__}; build the data set again")
        return holder[name]

    check(info, "records", int)
    for name, kind in {"tokenizer_sha256": str, "rendering": dict, "build": dict}.items():
        if name in info:
            check(info, name, kind)
    for i, shard in enumerate(check(info, "shards", list)):
        where = f"shards[{i}]."
        parts = check(shard, "name", str, where).split("/")
        if "" in parts or ".." in parts or "\0" in shard["name"]:
            raise DatasetError(f"{path}: {where}name: expected a file below the folder")
        if check(shard, "records", int, where) < 0:
            raise DatasetError(f"{path}: {where}records: expected a number, found {shard['records']}")
