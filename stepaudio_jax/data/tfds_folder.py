"""A data set that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

The library itself needs TensorFlow for a feature of sound, and imports whatever class `features.json` names. So only
its proto of a record is used; what a record holds is read off `features.json`: text, tensors (as lists), sound, and
sequences and objects of them, one within the other. Sound becomes {"array", "sampling_rate"}, or {"bytes"} where it
was kept as a file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from etils import epath

from stepaudio_jax.data.samples import RecordError, printable


class TfdsFolder:
    """One split: the only one there is, or the one that is named."""

    def __init__(self, folder: epath.Path, split: str | None):
        """Raises ValueError: not such a folder, another file format, a split that it does not have."""
        try:
            info = json.loads((folder / "dataset_info.json").read_text())
            self._feature = json.loads((folder / "features.json").read_text())
            splits = [str(entry["name"]) for entry in info["splits"]]
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{folder}: not a folder prepared by TFDS ({printable(repr(error))})") from None
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            expected = " or ".join(f"{folder}/{name}" for name in splits)
            raise ValueError(printable(f"{folder}: which split? expected {expected}, found {split or 'none named'}"))
        self._shards = sorted(folder.glob(f"*-{split}.array_record-*"))
        if not self._shards:
            expected = printable(f"*-{split}.array_record-*")
            raise ValueError(f"{folder}: no {expected} in it; prepare it with file_format=array_record")
        self._name = f"{folder}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
        """The records of numbers [start, stop), from 0."""
        for i in range(start, stop):
            where = f"{self._name}:{i + 1}"
            try:
                yield where, parse_example(self._records[i], self._feature)
            except RuntimeError as error:  # of the library, for a damaged shard; and nesting without end
                yield where, RecordError(f"{where}: cannot be read ({error})")
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                yield where, RecordError(f"{where}: not what features.json says ({error!r})")

    @functools.cached_property
    def _records(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            return ArrayRecordDataSource([str(shard) for shard in self._shards])
        except RuntimeError as error:
            raise ValueError(f"{self._name}: a shard is damaged ({printable(str(error))})") from None


def parse_example(data: bytes, feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """A serialized `tf.train.Example` to what `features.json` describes."""
    return _build(feature, "", (), _Leaves(data))


def values_of(data: bytes) -> dict[str, list]:
    """The values in a serialized `tf.train.Example`. Raises ValueError: not one."""
    try:
        from tensorflow_datasets.proto import tf_example_pb2
    except ImportError:
        raise ValueError('reading TFDS needs tensorflow-datasets: pip install "stepaudio-jax[data]"') from None
    from google.protobuf.message import DecodeError

    try:
        features = tf_example_pb2.Example.FromString(data).features.feature  # pyright: ignore
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example ({error})") from None
    values = {}
    for key, value in features.items():
        kind = value.WhichOneof("kind")
        values[key] = list(getattr(value, kind).value) if kind else []
    return values


class _Leaves:
    """The values of an example by their path.

    TFDS flattens nested features: a leaf of more than one unknown dimension is stored as its values
    (`…/ragged_flat_values`) and the lengths of its rows (`…/ragged_row_lengths_0`, …_1).
    """

    def __init__(self, data: bytes):
        self._values = values_of(data)
        self._nested: dict[str, list] = {}

    def at(self, feature: Mapping[str, Any], key: str, index: tuple[int, ...]) -> Any:
        """The value of a leaf at a place in the sequences around it."""
        if key not in self._nested:
            self._nested[key] = self._nest(key, _shape(feature))
        value = self._nested[key]
        for i in index:
            value = value[i]
        return value

    def _nest(self, key: str, shape: list[int]) -> list:
        """All values of a leaf, in lists of lists for the sequences around it and its own shape."""
        lengths = [self._values[name] for i in range(8) if (name := f"{key}/ragged_row_lengths_{i}") in self._values]
        values = self._values[f"{key}/ragged_flat_values" if lengths else key]
        for size in [size for size in reversed(shape[1:]) if size > 0]:
            values = [values[i : i + size] for i in range(0, len(values), size)]
        for sizes in reversed(lengths):
            following = iter(values)
            values = [list(islice(following, size)) for size in sizes]
        return values


def _build(feature: Mapping[str, Any], key: str, index: tuple[int, ...], leaves: _Leaves) -> Any:
    """The value of a feature at a place in the sequences around it."""
    content = feature.get("content", feature)  # the outermost is written in an older way
    content = content.get("featuresDict", content)
    if "features" in content:
        prefix = f"{key}/" if key else ""
        return {name: _build(child, prefix + name, index, leaves) for name, child in content["features"].items()}
    if "sequence" in content:
        child = content["sequence"]["feature"]
        size = len(leaves.at(*_first_leaf(child, key), index))
        return [_build(child, key, (*index, i), leaves) for i in range(size)]
    return _leaf(content, leaves.at(content, key, index), inside=bool(index))


def _first_leaf(feature: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], str]:
    """A leaf of a sequence, which has as many values as the sequence is long, and its path."""
    while "sequence" in feature or "featuresDict" in feature:
        if "sequence" in feature:
            feature = feature["sequence"]["feature"]
        else:
            name, feature = next(iter(feature["featuresDict"]["features"].items()))
            key = f"{key}/{name}"
    return feature, key


def _leaf(feature: Mapping[str, Any], value: Any, *, inside: bool) -> Any:
    """Text, a number, an array or sound; outside of sequences, a scalar is still in a list."""
    if not {"text", "audio", "tensor", "classLabel"} & set(feature):
        raise ValueError(f"{feature.get('pythonClassName')} is not read; expected text, audio or tensors")
    if not _shape(feature) and not inside:
        (value,) = value
    if "audio" in feature:
        rate = int(feature["audio"].get("sampleRate", 0)) or None
        is_file = isinstance(value, bytes)
        return {"bytes": value} if is_file else {"array": np.asarray(value), "sampling_rate": rate}
    if feature.get("tensor", {}).get("dtype") == "bool" and not _shape(feature):
        return bool(value)
    return value.decode() if isinstance(value, bytes) else value


def _shape(feature: Mapping[str, Any]) -> list[int]:
    """Of a leaf, without the sequences around it: −1 is unknown."""
    content = feature.get("audio") or feature.get("tensor") or {}
    if content.get("lazyDecode"):
        return []
    return [int(size) for size in content.get("shape", {}).get("dimensions", [])]
