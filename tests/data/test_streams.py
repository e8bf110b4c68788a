"""Streams: every sample once an epoch, shared between processes, exact after a stop; a fixed number of processes."""

import itertools
import logging

import pytest

from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.set_aside import DataError
from stepaudio_jax.data.streams import StreamBatches
from tests import small
from tests.data.memory import dialogue, dialogues, look, preference

ROW = 160
SAMPLES = dialogues(60).samples


@pytest.fixture
def run():
    """Makes streams that are closed at the end."""
    made = []

    def make(samples=SAMPLES, *, rows=2, **options):
        options = {"row_tokens": ROW, "seed": 3, "buffer": 20} | options
        made.append(StreamBatches(lambda epoch: samples, small.tokenizer(), look, rows=rows, **options))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def said(batches) -> list[str]:
    texts = [small.tokenizer().decode(item[1]) for batch in batches for row in batch for item in row]
    return sorted(text.split("number ")[1].split("?")[0] for text in texts)


def take(stream, n):
    return list(itertools.islice(stream, n))


def epoch_of(stream) -> list[str]:
    """The numbers said in the rows before the second epoch begins, a row at a time."""
    batches = []
    while True:
        batch = next(stream)
        if stream.state()["epoch"] > 0:
            return said(batches)
        batches.append(batch)


def test_every_sample_once_an_epoch(run):
    assert epoch_of(run(rows=1)) == sorted(str(i) for i in range(60))


def test_processes_share_the_stream(run, caplog):
    with caplog.at_level(logging.WARNING):
        parts = [epoch_of(run(rows=1, process=i, processes=3)) for i in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted(str(i) for i in range(60))
    assert [len(part) for part in parts] == [20, 20, 20]
    assert "the run can only go on with as many" in caplog.text


def test_rows_fit_and_are_shuffled(run):
    rows = [row for batch in take(run(), 20) for row in batch]
    lengths = [sum(len(item[1]) for item in row) for row in rows]
    assert max(lengths) <= ROW
    longest = [max(len(item[1]) for item in row) for row in rows]
    assert longest != sorted(longest, reverse=True)
    assert take(run(seed=4), 4) != take(run(), 4)


@pytest.mark.parametrize("process, processes", [(0, 1), (1, 2)])
def test_a_run_goes_on_exactly_from_every_state(run, process, processes):
    stream = run(process=process, processes=processes)
    states, batches = [], []
    while stream.state()["epoch"] < 2:
        states.append(stream.state())
        batches.append(next(stream))
    assert len({state["records"] for state in states}) > 1
    for step, state in enumerate(states[:-2]):
        resumed = run(process=process, processes=processes)
        resumed.restore(state)
        assert take(resumed, 2) == batches[step : step + 2]
        assert resumed.state() == states[step + 2]


def test_another_number_of_processes_is_refused(run):
    state = run(processes=2).state()
    with pytest.raises(DataError, match="expected the 2 processes that the run began with, found 1"):
        run().restore(state)


def test_bad_samples_are_set_aside(run):
    samples = [*SAMPLES[:10], RecordError("x.jsonl:11: not JSON"), dialogue(11, sounds=[0.01]), dialogue(12, 300)]
    stream = run(samples, too_long="drop", rows=1)
    assert epoch_of(stream) == sorted(str(i) for i in range(10))
    assert set(stream.set_aside.reasons) == {"cannot be read", "cannot be rendered", "too long"}
    with pytest.raises(DataError, match="more than max_bad_share 1"):
        take(stream, 300)


def test_preferences_stay_together(run):
    for batch in take(run([preference(i) for i in range(20)]), 8):
        for row in batch:
            texts = [small.tokenizer().decode(item[1]).split("?")[0] for item in row]
            assert texts[::2] == texts[1::2] and texts


def test_mistakes_are_named(run):
    with pytest.raises(DataError, match="epoch 0 has no record for process 0"):
        next(run([]))
    with pytest.raises(ValueError, match="too_long: expected one of truncate, drop"):
        run(too_long="cut")
