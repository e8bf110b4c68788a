"""The pipeline over a stored data set: eleven kinds of damage set aside by reason and place, all else in its place."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy

from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.pipeline import PackedBatches
from stepaudio_jax.data.set_aside import DataError
from stepaudio_jax.data.stored import RecordWriter, StoredDataset, encode_sample
from stepaudio_jax.text import Conversation
from tests import small
from tests.data.memory import MEASURED, SHA256, dialogue, look, stored

GOOD = 60


def tensors(sample, **changed) -> bytes:
    return safetensors.numpy.save({**safetensors.numpy.load(encode_sample(sample)), **changed})


def turns(number: int, **fields) -> np.ndarray:
    document = json.loads(safetensors.numpy.load(encode_sample(dialogue(number)))["conversation"].tobytes()) | fields
    return np.frombuffer(json.dumps(document).encode(), np.uint8)


def damaged(number: int) -> dict[str, bytes]:
    """Records that each have one fault, by what it is; the number is in their text."""
    sample = dialogue(number, sounds=[0.5])
    whole = encode_sample(sample)
    flac = safetensors.numpy.load(whole)["audio.0"]
    untrained = dataclasses.replace(sample, conversation=Conversation(sample.conversation.turns[:1]))
    return {
        "noise": np.random.default_rng(0).bytes(1000),
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "not JSON": tensors(sample, conversation=np.frombuffer(b"{turns", np.uint8)),
        "no turns": tensors(sample, conversation=turns(number, turns=[])),
        "turns of another type": tensors(sample, conversation=turns(number, turns="hello")),
        "sound missing": safetensors.numpy.save({"conversation": safetensors.numpy.load(whole)["conversation"]}),
        "sound cut off": tensors(sample, **{"audio.0": flac[: len(flac) // 2]}),
        "sound not finite": tensors(sample, **{"audio.0": np.full(8000, np.nan, np.float32)}),
        "sound too short": tensors(sample, **{"audio.0": np.zeros(100, np.float32)}),
        "nothing trained": encode_sample(untrained),
    }


def write(folder, records: list[bytes], tokens: list[int]) -> StoredDataset:
    folder.mkdir()
    with RecordWriter(folder / "records-00000-of-00001.arrayrecord") as writer:
        for record in records:
            writer.write(record)
    columns = {"tokens": np.int32, "rejected_tokens": np.int32, "units": np.int32, "kind": np.uint8}
    for name, dtype in columns.items():
        np.save(folder / f"{name}.npy", np.array(tokens if name == "tokens" else [0] * len(tokens), dtype))
    shards = [{"name": "records-00000-of-00001.arrayrecord", "records": len(records)}]
    info = {"version": 1, "records": len(records), "shards": shards, **MEASURED}
    (folder / "dataset.json").write_text(json.dumps(info))
    return StoredDataset(folder)


def pipeline(dataset, **options) -> PackedBatches:
    mixture = Mixture([Source("a", dataset)], row_tokens=160)
    return PackedBatches(mixture, small.tokenizer(), SHA256, look, batch_rows=4, seed=0, window=40, **options)


def test_damage_moves_nothing_else(tmp_path):
    samples = [dialogue(i, words=i % 13, sounds=[0.3] * (i % 3)) for i in range(GOOD)]
    faults = damaged(GOOD)
    tokens = stored(samples).tokens.tolist()
    # The plan was made when the records were whole; the one without a trained turn was stored as short as it is.
    lengths = [40] * (len(faults) - 1) + [int(stored([dialogue(GOOD, sounds=[0.5])]).tokens[0])]
    good = [encode_sample(sample) for sample in samples]
    whole = pipeline(write(tmp_path / "whole", good + [good[0]] * len(faults), tokens + lengths), max_bad_share=1.0)
    broken = pipeline(write(tmp_path / "broken", good + list(faults.values()), tokens + lengths), max_bad_share=1.0)
    for expected, found in zip(itertools.islice(whole, 40), broken, strict=False):
        assert found == expected  # there, too, what stands for the damaged ones differs from its stored length
    assert set(broken.set_aside.reasons) == {"cannot be read", "cannot be rendered", "length differs"}
    assert broken.set_aside.total > 2 * len(faults) and broken.set_aside.seen > 2 * GOOD
    for each in (whole, broken):
        each.close()


@pytest.mark.parametrize("fault", damaged(0))
def test_every_fault_has_its_line(tmp_path, fault, caplog):
    """And stops the run with it, where too many records have it."""
    record = damaged(0)[fault]
    run = pipeline(write(tmp_path / "set", [record] * 50, [40] * 50), max_bad_share=0.1)
    message = r"(\d+) of \1 records set aside \(\1 [a-z ]+\), more than max_bad_share 10"
    with pytest.raises(DataError, match=message) as error:
        list(itertools.islice(run, 100))
    run.close()
    assert "\n" not in str(error.value)
    place = "memory:0" if fault in ("no turns", "nothing trained") else f"{tmp_path}/set:"
    assert place in caplog.records[0].message
