"""Files of every kind give their records back, from any number on; what cannot be read stays in its place."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data import formats
from stepaudio_jax.data.reading import count, read, read_range
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.data.stored import COLUMNS, encode_sample
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests.data import records
from tests.data.records import CLIP, same, tone

ROWS = [{"id": i, "text": "né 二" * i, "list": [{"a": i}], "none": None} for i in range(10)]


def write(path, rows):
    kinds = {".parquet": records.write_parquet, ".arrayrecord": records.write_array_record}
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        kinds.get(path.suffix, records.write_lines)(path, rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrayrecord"])
def test_records_come_back_in_order_and_from_any_number_on(tmp_path, suffix):
    path = write(tmp_path / f"set{suffix}", ROWS)
    assert count(path) == 10
    assert [record for _, record in read([path, path])] == ROWS * 2
    for start, stop in [(0, 3), (2, 7), (3, 3), (9, 10), (8, 99), (10, 12)]:
        assert [record for _, record in read_range(path, start, stop)] == ROWS[start:stop]


@pytest.mark.parametrize("suffix", [".parquet", ".arrayrecord"])
def test_a_place_is_the_number_where_there_are_no_lines(tmp_path, suffix):
    path = write(tmp_path / f"set{suffix}", ROWS)
    assert [where for where, _ in read_range(path, 4, 6)] == [f"{path}:5", f"{path}:6"]


LINES = ["", "  ", '{"a": 1}', '{"a": "\\n"}', "{", "[]", '"x"', "\udcff"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(LINES), max_size=12), st.data())
def test_lines_keep_their_numbers_whatever_stands_in_them(tmp_path_factory, lines, data):
    path = tmp_path_factory.mktemp("lines") / "set.jsonl"
    path.write_bytes("\n".join(["{}", *lines]).encode(errors="surrogateescape"))
    expected = [(i, line) for i, line in enumerate(["{}", *lines], 1) if line.strip()]
    assert count(path) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    for (number, line), (where, record) in zip(expected[start:], read_range(path, start, len(expected)), strict=True):
        assert where == f"{path}:{number}"
        if line.startswith('{"') or line == "{}":
            assert record == json.loads(line)
        else:
            assert isinstance(record, RecordError) and str(record).startswith(f"{where}: ")


@pytest.mark.parametrize("line, reason", records.BROKEN_LINES.items())
def test_lines_that_are_no_record(tmp_path, line, reason):
    path = records.write_lines(tmp_path / "set.jsonl", [{}, line, {}])
    (_, first), (where, bad), (_, last) = read([path])
    assert first == last == {} and where == f"{path}:2"
    assert isinstance(bad, RecordError) and str(bad).startswith(f"{path}:2: ") and reason in str(bad)


def test_nesting_beyond_all_measure_is_a_bad_record(tmp_path):
    path = records.write_lines(tmp_path / "set.jsonl", ['{"a":' + "[" * 200_000])
    ((_, record),) = read([path])
    assert isinstance(record, RecordError)


def test_a_list_gives_lines_and_ends_where_it_is_broken(tmp_path):
    path = tmp_path / "set.json"
    path.write_text('\ufeff [\n{"a": 1},\n\n {"a":\n 2}, 3,\n {"a": 4}, {"a" 5}, {"a": 6}]', encoding="utf-8")
    places, found = zip(*read([path]), strict=True)
    assert [where.removeprefix(f"{path}:") for where in places] == ["2", "4", "5", "6", "6"]
    assert (found[0], found[1], found[3]) == ({"a": 1}, {"a": 2}, {"a": 4})
    assert "found int" in str(found[2]) and "nothing behind it is read" in str(found[4])


@pytest.mark.parametrize("end", ["", ",", "] x", "][", ']{"a": 2}'])
def test_a_list_that_does_not_end_well_has_a_bad_record(tmp_path, end):
    path = tmp_path / "set.json"
    path.write_text('[{"a": 1}' + end)
    assert [type(record) for _, record in read([path])] == [dict, RecordError]


def test_lines_in_a_json_file_and_a_list_in_a_jsonl_file(tmp_path):
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "list.jsonl").write_text('[{"a": 1}, {"a": 2}]')
    for name in ("lines.json", "list.jsonl"):
        assert [record for _, record in read([tmp_path / name])] == [{"a": 1}, {"a": 2}]


def test_a_file_that_grew_is_read_anew(tmp_path):
    path = records.write_lines(tmp_path / "set.jsonl", [{}])
    assert count(path) == 1
    records.write_lines(path, [{}, {}])
    assert count(path) == 2
    records.write_lines(path, ["", "{}  "])  # as many bytes, in the same second
    assert count(path) == 1


def test_rows_of_a_broken_group_keep_their_numbers(tmp_path):
    """The bytes of the second row group are overwritten; the footer, at the end of the file, is whole."""
    import pyarrow.parquet

    path = write(tmp_path / "set.parquet", [{"text": f"{i} " * 500} for i in range(9)])
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    first = group.dictionary_page_offset or group.data_page_offset
    data = bytearray(path.read_bytes())
    data[first : first + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(data)
    found = list(read([path]))
    assert [where for where, _ in found] == [f"{path}:{i + 1}" for i in range(9)]
    assert [isinstance(record, RecordError) for _, record in found] == [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("name, expected", [
    ("none.jsonl", "no such file or folder"),
    ("set.csv", "not a file of records; expected .jsonl, .json, .parquet"),
    ("set.parquet", "not a parquet file"),
    ("set.arrayrecord", "not a whole ArrayRecord file"),
    (".", "a folder with dataset.json or features.json"),
])  # fmt: skip
def test_what_is_no_file_of_records_is_refused_by_name(tmp_path, name, expected):
    for file in ("set.csv", "set.parquet", "set.arrayrecord"):
        (tmp_path / file).write_bytes(b"PAR1 or so")
    with pytest.raises((ValueError, OSError)) as caught:
        count(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path)) and expected in str(caught.value)


def test_a_parquet_row_of_hugging_face_has_its_sound_in_it(tmp_path):
    records.write_sounds(tmp_path)
    sound = {"bytes": (tmp_path / CLIP).read_bytes(), "path": CLIP}
    path = write(tmp_path / "set.parquet", [records.swift(audio=sound)])
    ((where, record),) = read([path])
    clip = formats.parse(record, Sounds(()), where).conversation.audio[0]
    assert np.array_equal(clip.samples, tone()) and clip.name == CLIP


def test_stored_samples_come_whole(tmp_path):
    """In a lone shard between JSON, and in a folder as `stepaudio data build` leaves it."""
    whole = encode_sample(sample := Sample(Conversation((human(Audio(tone())), assistant("Two.")))))
    length = int.from_bytes(whole[:8], "little")  # of the header, which spaces may pad: here to begin like JSON does
    padded = length + (ord("{") - length) % 256
    like_json = padded.to_bytes(8, "little") + whole[8 : 8 + length].ljust(padded) + whole[8 + length :]
    broken = whole[:-100]
    path = write(tmp_path / "set.arrayrecord", [{"a": 1}, whole, like_json, broken])
    (_, record), *stored, (where, bad) = read([path])
    assert record == {"a": 1} and isinstance(bad, RecordError) and str(bad).startswith(f"{where}: ")
    for where, found in stored:
        assert isinstance(found, Sample) and same(found.conversation, sample.conversation)
        assert formats.parse(found, Sounds(()), where) is found

    folder = tmp_path / "stored"
    folder.mkdir()
    records.write_array_record(folder / "records-00000-of-00001.arrayrecord", [whole, broken])
    for name, dtype in COLUMNS.items():
        np.save(folder / f"{name}.npy", np.ones(2, dtype))
    shards = [{"name": "records-00000-of-00001.arrayrecord", "records": 2}]
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "records": 2, "shards": shards}))
    (where, found), (other, bad) = read([folder])
    assert isinstance(found, Sample) and same(found.conversation, sample.conversation)
    assert (where, other) == (f"{folder}:0", f"{folder}:1") and str(bad).startswith(f"{other}: ")


# Prepared by TensorFlow Datasets.


def dialogue_features(**more):
    import tensorflow_datasets as tfds

    message = {"role": tfds.features.Text(), "content": tfds.features.Text(), "loss": np.bool_}
    return tfds.features.FeaturesDict({"messages": tfds.features.Sequence(message), "id": np.int64, **more})


def dialogue(i):
    messages = [
        {"role": "user", "content": f"né 二 {i}", "loss": False},
        {"role": "assistant", "content": "Ja.", "loss": True},
    ]
    return {"messages": messages, "id": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What TFDS itself writes of a builder."""
    import tensorflow_datasets as tfds

    class Mini(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=dialogue_features())

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(7), "test": self._generate_examples(2)}

        def _generate_examples(self, number):
            yield from ((i, dialogue(i)) for i in range(number))

    builder = Mini(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_a_prepared_split_is_what_tfds_reads(prepared):
    folder = prepared.data_path
    theirs = [int(record["id"]) for record in prepared.as_data_source("train")]
    assert count(f"{folder}/train") == 7 and count(f"{folder}/test") == 2
    found = list(read([f"{folder}/train"]))
    assert [record for _, record in found] == [dialogue(i) for i in theirs]
    assert [where for where, _ in found] == [f"{folder}/train:{i + 1}" for i in range(7)]
    turns = formats.parse(found[0][1], Sounds(()), "x:1").conversation.turns
    assert [(turn.role, turn.loss) for turn in turns] == [("human", False), ("assistant", True)]
    with pytest.raises(ValueError, match=r"which split.*/train or .*/test"):
        count(folder)


def examples(**values):
    """A serialized tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for key, value in values.items():
        feature = example.features.feature[key]
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[type(value[0])]
        kind.value.extend(value)
    return example.SerializeToString()


def prepared_by_hand(folder, features, data):
    (folder / "dataset_info.json").write_text(json.dumps({"name": "mini", "splits": [{"name": "train"}]}))
    (folder / "features.json").write_text(json.dumps(features))
    records.write_array_record(folder / "mini-train.array_record-00000-of-00001", data)
    return folder


def audio_feature(**more):
    """As `tfds.features.Audio` writes itself to features.json; the class itself cannot be made without TensorFlow."""
    content = {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "16000", **more}
    return {"pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio", "audio": content}


def test_prepared_sound(tmp_path):
    samples = (tone() * 32768).astype(int).tolist()
    records.write_sounds(tmp_path)
    features = dialogue_features().to_json()
    sequence = {"sequence": {"feature": audio_feature(), "length": "-1"}}
    features["content"]["features"] |= {"audios": sequence, "file": audio_feature(lazyDecode=True)}
    values = {
        "messages/role": [b"user", b"assistant"],
        "messages/content": [b"<audio> or <audio>?", b"Both."],
        "messages/loss": [0, 1],
        "id": [3],
        "audios/ragged_flat_values": samples[:4000] + samples,
        "audios/ragged_row_lengths_0": [4000, 8000],
        "file": [(tmp_path / CLIP).read_bytes()],
    }
    without = {key: value for key, value in values.items() if key != "audios/ragged_row_lengths_0"}
    data = [examples(**values), b"\xff\xff", examples(**without)]
    (_, record), *broken = read([prepared_by_hand(tmp_path, features, data)])
    clips = formats.parse(record, Sounds(()), "x:1").conversation.audio
    assert np.array_equal(clips[0].samples, tone()[:4000]) and np.array_equal(clips[1].samples, tone())
    assert np.array_equal(Sounds(()).load(record["file"], "file").samples, tone())
    assert all(isinstance(bad, RecordError) and "features.json" in str(bad) for _, bad in broken)


def test_sequences_within_sequences_are_what_tfds_reads(tmp_path):
    import tensorflow_datasets as tfds

    inner = tfds.features.Sequence({"n": np.int64, "w": tfds.features.Tensor(shape=(None,), dtype=np.float32)})
    features = dialogue_features(
        grid=tfds.features.Tensor(shape=(None, 2), dtype=np.float32), outer=tfds.features.Sequence({"inner": inner})
    )
    data = examples(**{
        "grid": [1.0, 2.0, 3.0, 4.0],
        "outer/inner/n/ragged_flat_values": [5, 6],
        "outer/inner/n/ragged_row_lengths_0": [0, 2],
        "outer/inner/w/ragged_flat_values": [0.5],
        "outer/inner/w/ragged_row_lengths_0": [0, 2],
        "outer/inner/w/ragged_row_lengths_1": [1, 0],
        "messages/role": [b"user"],
        "messages/content": [b"x"],
        "messages/loss": [0],
        "id": [1],
    })  # fmt: skip
    theirs = features.deserialize_example_np(data)
    ((_, ours),) = read([prepared_by_hand(tmp_path, features.to_json(), [data])])
    assert np.array_equal(ours["grid"], theirs["grid"])
    assert [[row["n"] for row in block["inner"]] for block in ours["outer"]] == [
        row.tolist() for row in theirs["outer"]["inner"]["n"]
    ]
    assert [row["w"] for row in ours["outer"][1]["inner"]] == [
        row.tolist() for row in theirs["outer"]["inner"]["w"][1]
    ]
