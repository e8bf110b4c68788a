"""Files that are damaged, or say of themselves what is not so, are refused in a line; other records stay."""

import json

import numpy as np
import pytest

from stepaudio_jax.data import stored
from stepaudio_jax.data.loading import check_lengths
from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.reading import count, read
from stepaudio_jax.data.records import encode_sample
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.set_aside import DataError
from stepaudio_jax.data.stored import COLUMNS, DatasetError, RecordWriter, StoredDataset
from stepaudio_jax.text import Conversation, assistant, human
from tests.data import records

ROWS = [{"id": i, "text": str(i) * 200_000} for i in range(4)]


def test_a_damaged_array_record_file(tmp_path):
    """Every record is a block of its own with a checksum; the file's end says where they are."""
    path = tmp_path / "set.arrayrecord"
    with RecordWriter(path) as writer:
        for row in ROWS:
            writer.write(json.dumps(row).encode())
    data = bytearray(path.read_bytes())
    at = data.index(b"2" * 1000)
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    found = list(read([path]))
    assert [record for _, record in found if not isinstance(record, RecordError)] == [ROWS[0], ROWS[1], ROWS[3]]
    assert isinstance(found[2][1], RecordError) and str(found[2][1]).startswith(f"{path}:3: the file is damaged here")
    for broken in (data[: len(data) // 2], data[:-70_000] + b"\0" * 70_000, b"words " * 20_000, b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="not a whole ArrayRecord file") as caught:
            count(path)
        assert str(caught.value).isprintable()


@pytest.fixture
def folder(tmp_path):
    """A stored set of two samples."""
    shard = "records-00000-of-00001.arrayrecord"
    with RecordWriter(tmp_path / shard) as writer:
        for i in range(2):
            writer.write(encode_sample(Sample(Conversation((human("q"), assistant(str(i)))))))
    for name, dtype in COLUMNS.items():
        np.save(tmp_path / f"{name}.npy", np.ones(2, dtype))
    info = {"version": stored.VERSION, "records": 2, "shards": [{"name": shard, "records": 2}]}
    info |= {"tokenizer_sha256": "0" * 64, "rendering": {}, "build": {}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"records": None}, "records: expected int"),
        ({"records": True}, "records: expected int"),
        ({"shards": 2}, "shards: expected list"),
        ({"shards": ["a"]}, r"shards\[0\]\.name: expected str"),
        ({"shards": [{"name": "../a", "records": 2}]}, r"shards\[0\]\.name: expected a file below the folder"),
        ({"shards": [{"name": "/etc/passwd", "records": 2}]}, r"shards\[0\]\.name: expected a file below the folder"),
        ({"shards": [{"name": "a", "records": "2"}]}, r"shards\[0\]\.records: expected int"),
        ({"shards": [{"name": "a", "records": -2}]}, r"shards\[0\]\.records: expected a number, found -2"),
        ({"rendering": [], "tokenizer_sha256": None}, "tokenizer_sha256: expected str"),
        ({"build": 7}, "build: expected dict"),
        ({"version": "\x1b" * 9}, "version: expected 1, found"),
    ],
)
def test_a_description_that_is_none(folder, change, reason):
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | change))
    with pytest.raises(DatasetError, match=reason) as caught:
        StoredDataset(folder)
    assert str(caught.value).isprintable()


def test_a_description_without_what_lengths_were_measured_with(folder):
    info = json.loads((folder / "dataset.json").read_text())
    del info["rendering"]
    (folder / "dataset.json").write_text(json.dumps(info))
    mixture = Mixture([Source("x", StoredDataset(folder), 1.0)], row_tokens=100)
    with pytest.raises(DataError, match=r"sources\.x: its dataset\.json has no rendering; build the data set again"):
        check_lengths(mixture, "0" * 64, {})


HEADS = [b"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), ", b"{'descr': (", b"'\0'", b"{'descr': '<i4'}}}"]


@pytest.mark.parametrize("head", HEADS)
def test_a_column_whose_head_is_no_python(folder, head):
    """numpy parses it as an expression, and lets all of that parser's errors through."""
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\0" * 8
    (folder / "tokens.npy").write_bytes(data)
    with pytest.raises(DatasetError, match=r"tokens\.npy: cannot be read") as caught:
        StoredDataset(folder)
    assert str(caught.value).isprintable()


def test_a_shard_that_is_damaged(folder):
    shard = folder / "records-00000-of-00001.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:50_000])
    for i, (where, record) in enumerate(read([folder])):
        assert where == f"{folder}:{i}" and isinstance(record, RecordError) and str(record).startswith(where)


@pytest.mark.parametrize(
    "features",
    [
        {"featuresDict": {"features": []}},
        {"featuresDict": {"features": "messages"}},
        {"featuresDict": 7},
        {"featuresDict": {"features": {"a": {"sequence": {"feature": 1}}}}},
        {"featuresDict": {"features": {"a": {"text": {}, "audio": []}}}},
        [],
    ],
)
def test_a_prepared_folder_whose_features_are_none(tmp_path, features):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "train"}]}))
    (tmp_path / "features.json").write_text(json.dumps(features))
    records.write_array_record(tmp_path / "x-train.array_record-00000-of-00001", [b"\n\0"])
    ((where, record),) = read([tmp_path])
    assert where == f"{tmp_path}/train:1"
    assert isinstance(record, RecordError) and "features.json" in str(record)
