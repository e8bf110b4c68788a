"""Files on disk to records, one after the other or by number.

    .jsonl, .json                  an object a line, or one list of objects
    .parquet                       a row is a record (pyarrow, extra `data`)
    .arrayrecord, .array_record    JSON, or samples as data/stored.py writes them
    a folder with dataset.json     a data set that `stepaudio data build` made
    a folder with features.json    prepared by TensorFlow Datasets (data/tfds_folder.py); FOLDER/train names a split

A record is a mapping for `formats.parse`, or a whole Sample where it was stored as one. Its place, for messages, is
"file:line" in JSON, "file:number" elsewhere, from 1, and "folder:index" in a stored data set, from 0 like its samples.
What cannot be read comes as a RecordError in its place, so that numbers stay what they are. Of a file only where its
records begin is kept in memory; a `.json` list is kept whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from etils import epath

from stepaudio_jax.data.json_files import MAX_JSON, JsonLines, JsonList, first_letter, from_json
from stepaudio_jax.data.samples import RecordError, Sample, printable
from stepaudio_jax.data.sounds import stamp

Record = Mapping[str, Any] | Sample
Placed = tuple[str, Record | RecordError]

ARRAY_RECORD = (".arrayrecord", ".array_record")
JSON = (".jsonl", ".json")


class Source(Protocol):
    """Records that are reached by number."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Placed]:
        """The records of numbers [start, stop), from 0."""
        ...


def count(path: epath.PathLike) -> int:
    """How many records a file or folder has, unreadable ones included.

    Raises:
      OSError: no such file.
      ValueError: not a file of records; the message says what is read.
    """
    return len(_source(path))


def read_range(path: epath.PathLike, start: int, stop: int) -> Iterator[Placed]:
    """(place, record) of the records of numbers [start, stop), from 0, as far as there are that many."""
    source = _source(path)
    return source.read(min(start, len(source)), min(stop, len(source)))


def read(paths: Iterable[epath.PathLike]) -> Iterator[Placed]:
    """(place, record) of every record of every path, in order."""
    for path in paths:
        yield from read_range(path, 0, count(path))


def _source(path: epath.PathLike) -> Source:
    path = epath.Path(path)
    try:
        is_there = path.exists()
    except ImportError as error:  # what epath needs for gs://
        raise ValueError(f"{path}: {error}") from None
    if path.suffix in (*JSON, ".parquet", *ARRAY_RECORD) and is_there and not path.is_dir():
        return _open(str(path), tuple(stamp(path) or ()))
    if (path / "dataset.json").exists():
        return _open(str(path), tuple(stamp(path / "dataset.json") or ()))
    for folder, split in ((path, None), (path.parent, path.name)):
        if (folder / "features.json").exists():
            from stepaudio_jax.data.tfds_folder import TfdsFolder

            return TfdsFolder(folder, split)
    if not is_there:
        raise FileNotFoundError(f"{path}: no such file or folder")
    kinds = ", ".join((*JSON, ".parquet", *ARRAY_RECORD))
    raise ValueError(f"{path}: not a file of records; expected {kinds}, or a folder with dataset.json or features.json")


@functools.lru_cache(maxsize=16)
def _open(path: str, stamped: tuple[int, ...]) -> Source:
    """Opened once for all pieces that are read of it; the stamp tells a file that has changed."""
    suffix = epath.Path(path).suffix
    if suffix == ".parquet":
        return _Parquet(path)
    if suffix in ARRAY_RECORD:
        return _ArrayRecord(path)
    if suffix not in JSON:
        return _Stored(path)
    return JsonList(path) if first_letter(path) == b"[" else JsonLines(path)


class _Parquet:
    """Rows, read a row group's batch at a time."""

    def __init__(self, path: str):
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f'{path}: reading parquet needs pyarrow: pip install "stepaudio-jax[data]"') from None
        self._path, self._parquet, self._arrow_error = path, pyarrow.parquet, pyarrow.ArrowException
        with epath.Path(path).open("rb") as stream:
            try:
                meta = pyarrow.parquet.ParquetFile(stream).metadata
            except (ValueError, OSError, self._arrow_error) as error:
                raise ValueError(f"{path}: not a parquet file ({printable(str(error))})") from None
            self._sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self, start: int, stop: int) -> Iterator[Placed]:
        with epath.Path(self._path).open("rb") as stream:
            file, first = self._parquet.ParquetFile(stream), 0
            for group, size in enumerate(self._sizes):
                wanted = range(max(start, first), min(stop, first + size))
                if wanted:
                    yield from self._rows(file, group, first, wanted)
                first += size

    def _rows(self, file: Any, group: int, at: int, wanted: range) -> Iterator[Placed]:
        """The wanted rows of one group, whose first row has the number `at`."""
        meta = file.metadata.row_group(group)
        size = max(1, min(64, MAX_JSON * meta.num_rows // max(1, meta.total_byte_size)))
        try:
            for batch in file.iter_batches(batch_size=size, row_groups=[group]):
                for i in range(max(wanted.start, at), min(wanted.stop, at + len(batch))):
                    yield self._row(batch.slice(i - at, 1), f"{self._path}:{i + 1}")
                at += len(batch)
                if at >= wanted.stop:
                    return
        except (ValueError, OSError, self._arrow_error) as error:
            for i in range(max(wanted.start, at), wanted.stop):
                where = f"{self._path}:{i + 1}"
                yield where, RecordError(f"{where}: the row group cannot be read ({error})")

    def _row(self, row: Any, where: str) -> Placed:
        try:
            return where, row.to_pylist()[0]
        except (ValueError, OverflowError, self._arrow_error) as error:  # text that is none, a date in the year 10,000
            return where, RecordError(f"{where}: a value cannot be read ({error})")


class _ArrayRecord:
    """JSON, or samples as data/stored.py writes them."""

    def __init__(self, path: str):
        self._path = path
        try:
            reader = self._reader()
            self._size = reader.num_records()
            reader.close()
        except RuntimeError as error:  # of the library, for any damage
            raise ValueError(f"{path}: not a whole ArrayRecord file ({printable(str(error))})") from None

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, stop: int) -> Iterator[Placed]:
        reader = self._reader()
        for i in range(start, stop):
            where = f"{self._path}:{i + 1}"
            try:
                data = reader.read([i])[0]
            except (RuntimeError, IndexError) as error:  # IndexError after an earlier failure
                reader = self._reader()
                yield where, RecordError(f"{where}: the file is damaged here ({error})")
            else:
                yield self._record(data, where)

    def _reader(self) -> Any:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        reader = array_record_module.ArrayRecordReader(self._path)
        if not reader.ok():
            raise ValueError(f"{self._path}: not a whole ArrayRecord file")
        return reader

    @staticmethod
    def _record(data: bytes, where: str) -> Placed:
        if data[7:8] != b"\0":  # in safetensors, the last byte of a length; JSON has no zeros
            return from_json(data, where)
        from stepaudio_jax.data.stored import decode_sample

        try:
            return where, decode_sample(data, where)
        except RecordError as error:
            return where, error


class _Stored:
    """A folder that `stepaudio data build` wrote."""

    def __init__(self, path: str):
        from stepaudio_jax.data.stored import StoredDataset

        self._path, self._samples = path, StoredDataset(path)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, start: int, stop: int) -> Iterator[Placed]:
        for i in range(start, stop):
            where = f"{self._path}:{i}"
            try:
                yield where, self._samples[i]
            except RecordError as error:
                yield where, error
