"""Stored data sets: any record from any thread; a folder that is not whole, or damaged, is refused."""

import json
import os
import threading

import numpy as np
import pytest

from stepaudio_jax.data.records import encode_sample
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.stored import DatasetError, RecordWriter, StoredDataset
from stepaudio_jax.text import Audio, Conversation, assistant, human


def sample_number(i: int) -> Sample:
    return Sample(Conversation((human(Audio(np.full(321 + i, i / 2**15, np.float32)), str(i)), assistant("a"))))


@pytest.fixture
def folder(tmp_path):
    """Ten records in three shards, one of them empty."""
    columns = {name: np.arange(10, dtype=np.int32) for name in ("tokens", "rejected_tokens", "units")}
    for name, column in (columns | {"kind": np.ones(10, np.uint8)}).items():
        np.save(tmp_path / f"{name}.npy", column)
    shards = []
    for name, numbers in (("a", range(4)), ("b", ()), ("c", range(4, 10))):
        with RecordWriter(tmp_path / name) as writer:
            for i in numbers:
                writer.write(encode_sample(sample_number(i)))
        shards.append({"name": name, "records": len(numbers)})
    (tmp_path / "dataset.json").write_text(json.dumps({"version": 1, "records": 10, "shards": shards}))
    return tmp_path


def test_random_access_from_many_threads(folder):
    stored = StoredDataset(folder)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 10, 100):
            sample = stored[int(i)]
            if sample.conversation.turns[0].text != str(i) or len(sample.conversation.audio[0].samples) != 321 + i:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored) == 10 and not wrong
    np.testing.assert_array_equal(stored.units, np.arange(10))
    with pytest.raises(IndexError, match="record 10 of 10"):
        stored[10]


def test_a_folder_that_is_not_whole_is_refused(folder):
    def refused(match):
        with pytest.raises(DatasetError, match=match):
            StoredDataset(folder)

    np.save(folder / "tokens.npy", np.zeros(9, np.int32))
    refused(r"tokens.npy: expected int32 \[10\], found int32 \[9\]")
    (folder / "tokens.npy").write_bytes(b"\x93NUMPY")
    refused("tokens.npy: cannot be read")
    np.save(folder / "tokens.npy", np.zeros(10, np.int32))
    (folder / "a").unlink()
    refused("a: no such file")
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"version": 99}))
    refused("version: expected 1, found 99")
    (folder / "dataset.json").unlink()
    refused("no dataset.json")


def test_a_damaged_shard_is_a_record_error(folder):
    data = bytearray((folder / "c").read_bytes())
    data[100:40_000] = bytes(len(data[100:40_000]))
    (folder / "c").write_bytes(data)
    stored = StoredDataset(folder)
    assert stored[0].conversation.turns[0].text == "0"
    with pytest.raises(RecordError, match=r":5: "):
        stored[5]


def test_a_shard_has_its_name_once_it_is_whole(tmp_path):
    with pytest.raises(KeyError), RecordWriter(tmp_path / "shard") as writer:
        writer.write(b"x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match=r"shard: writing failed .*No such file"), RecordWriter(
        tmp_path / "nowhere" / "shard"
    ) as writer:
        writer.write(b"x")


def test_an_object_store_is_given_whole_files(tmp_path, monkeypatch):
    """A local folder behind the calls that gs:// takes."""
    monkeypatch.setattr("stepaudio_jax.data.stored._is_remote", lambda path: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bucket").mkdir()
    with RecordWriter(tmp_path / "bucket" / "shard") as writer:
        writer.write(b"x")
        assert list((tmp_path / "bucket").iterdir()) == []
    assert (tmp_path / "bucket" / "shard").stat().st_size > 0 and list((tmp_path / "scratch").iterdir()) == []


def test_a_full_disk(tmp_path):
    """/dev/full under the shard's temporary name."""
    os.symlink("/dev/full", tmp_path / f"shard.unfinished-{os.getpid()}")
    with pytest.raises(DatasetError, match=r"shard: .*No space left"), RecordWriter(tmp_path / "shard") as writer:
        writer.write(bytes(10**6))
    assert list(tmp_path.iterdir()) == []
