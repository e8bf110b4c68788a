"""A record that is too long to be read is refused before it is parsed or tokenized, in every kind of file."""

import json
import tracemalloc

import numpy as np
import pytest

from stepaudio_jax.data import formats, json_files, samples
from stepaudio_jax.data.check import check
from stepaudio_jax.data.json_files import MAX_JSON
from stepaudio_jax.data.reading import count, read
from stepaudio_jax.data.samples import MAX_CHARACTERS, RecordError, Sample
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.data.stored import encode_sample
from stepaudio_jax.text import Conversation, assistant, human
from tests import small
from tests.data import records

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
LONG = "x" * (MAX_CHARACTERS + 1)


def test_a_hundred_megabytes_are_refused_before_they_are_parsed(tmp_path):
    path = tmp_path / "set.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps({"messages": [Q, A]}).encode() + b"\n")
        file.write(b'{"messages": [{"role": "user", "content": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}]}\n' + json.dumps({"messages": [Q, A]}).encode())
    tracemalloc.start()
    findings = check([path], small.tokenizer(), max_bad_share=1, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert findings.good == 2
    ((where, reason),) = findings.bad
    assert where == f"{path}:2" and reason.startswith("more than 64 MiB of JSON in one record (MAX_JSON)")
    assert peak < 2.5 * MAX_JSON  # the piece that was read of it, and never its text


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{**Q, "content": LONG}, A]},
        {"messages": [Q, {**A, "content": [{"type": "text", "text": LONG}]}]},
        {"messages": [Q, {**A, "reasoning": LONG}]},
        {"messages": [Q, A], "tools": LONG},
        {"messages": [Q, A], "system": LONG},
        {"messages": [Q, A], "rejected_response": LONG},
        {"messages": [{**Q, "content": "<audio>" * (MAX_CHARACTERS // 7 + 1)}, A]},
        {"messages": [Q, {**A, "tool_calls": [{"function": {"name": "f", "arguments": {"a": LONG}}}]}]},
    ],
)
def test_text_beyond_the_bound_is_refused_wherever_it_stands(record):
    with pytest.raises(RecordError, match=r"^x:1: 2,\d+,\d+ characters of text, .* 2,097,152 .*MAX_CHARACTERS"):
        formats.parse(record, Sounds(()), "x:1")


@pytest.mark.parametrize("extra", [{"big": "x" * 5000}, {"big": ["x" * 10] * 500}, {"big": {"x" * 5000: 1}}])
def test_what_is_not_read_has_a_bound(monkeypatch, extra):
    monkeypatch.setattr(samples, "MAX_EXTRA", 4999)
    small_one = {"messages": [Q, A], "id": 1}
    assert formats.parse(small_one, Sounds(()), "x:1").conversation.extra == {"id": 1}
    with pytest.raises(RecordError, match=r"^x:1: 5,\d+ characters in columns that .* largest first: big, id"):
        formats.parse({**small_one, **extra}, Sounds(()), "x:1")
    with pytest.raises(RecordError, match=r"^x:1: 5,\d+ characters in columns"):
        formats.parse({"messages": [{**Q, **extra}, A]}, Sounds(()), "x:1")


def test_what_is_not_read_may_be_nested_as_deeply_as_json_is():
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    sample = Sample(Conversation((human("Q"), assistant("A")), extra=deep))
    assert formats.parse(sample, Sounds(()), "x:1").conversation.extra is deep
    with pytest.raises(RecordError, match=r"^x:1: lists and objects nested too deeply"):
        formats.parse({"messages": [Q, A], "deep": deep}, Sounds(()), "x:1")


def test_messages_and_parts_have_a_bound():
    parts = [{"type": "text", "text": "x"}] * 20_001
    for record, where in [
        ({"messages": [Q] * 20_001}, "messages"),
        ({"messages": [{**Q, "content": parts}, A]}, r"messages\[0\]\.content"),
    ]:
        with pytest.raises(RecordError, match=rf"^x:1: {where}: expected at most 20,000 \(MAX_ITEMS\), found 20,001"):
            formats.parse(record, Sounds(()), "x:1")


def test_text_at_the_bound_is_read():
    record = {"messages": [{**Q, "content": LONG[: MAX_CHARACTERS - len("human" + "assistant" + "A")]}, A]}
    assert formats.parse(record, Sounds(()), "x:1").conversation.turns[1].text == "A"
    record["messages"][1]["content"] = "AB"
    with pytest.raises(RecordError, match="2,097,153 characters"):
        formats.parse(record, Sounds(()), "x:1")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrayrecord", ".stored"])
def test_every_kind_of_file_has_the_bound(tmp_path, monkeypatch, suffix):
    """Lower bounds than the real ones, so that the files are small."""
    monkeypatch.setattr(json_files, "MAX_JSON", 5000)
    monkeypatch.setattr(samples, "MAX_CHARACTERS", 1000)

    def told(size: int) -> dict:
        return {"messages": [{**Q, "content": "x" * size}, A]}

    sizes = [10, 9000, 2000, 10]
    if suffix == ".stored":
        path = tmp_path / "set.arrayrecord"
        dialogues = [Conversation((human("x" * size), assistant("A"))) for size in sizes]
        records.write_array_record(path, [encode_sample(Sample(dialogue)) for dialogue in dialogues])
    elif suffix == ".json":
        path = records.write_lines(tmp_path / "set.json", [list(map(told, sizes))])
    else:
        write = {".jsonl": records.write_lines, ".parquet": records.write_parquet}.get(
            suffix, records.write_array_record
        )
        path = write(tmp_path / f"set{suffix}", list(map(told, sizes)))
    assert count(path) == 4
    findings = check([path], small.tokenizer(), max_bad_share=1)
    assert findings.good == 2
    assert ["MAX_JSON" in reason or "MAX_CHARACTERS" in reason for _, reason in findings.bad] == [True, True]


def test_a_row_with_a_value_that_cannot_be_read_is_bad_alone(tmp_path):
    """Text that is no UTF-8, which no reader of parquet minds until it is asked for."""
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"a", b"\xff\xfe", b"c"], pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    found = [record for _, record in read([path])]
    assert (found[0], found[2]) == ({"text": "a"}, {"text": "c"})
    assert isinstance(found[1], RecordError) and str(found[1]).startswith(f"{path}:2: a value cannot be read")
    far = pyarrow.array(np.array([0, 2**60], "datetime64[us]"))
    pyarrow.parquet.write_table(pyarrow.table({"when": far}), path)
    assert [isinstance(record, RecordError) for _, record in read([path])] == [False, True]


def test_long_lines_are_counted_in_pieces(tmp_path):
    """Blank pieces of a line, lines longer than a piece, and no newline at the end."""
    path = tmp_path / "set.jsonl"
    space = " " * (1 << 20)
    path.write_text(f'{space}{{"a": 1}}\n{space}\n\n{{"a": "{"x" * (1 << 20)}"}}{space}\n{space}{{"a": 2}}')
    assert 3 * len(space) < MAX_JSON
    assert [where.rpartition(":")[2] for where, _ in read([path])] == ["1", "4", "5"]
    assert [record if isinstance(record, RecordError) else len(str(record["a"])) for _, record in read([path])] == [
        1,
        1 << 20,
        1,
    ]
