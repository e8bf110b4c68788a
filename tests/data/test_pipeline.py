"""The pipeline: the same batches for any number of processes and after any stop; bad records move nothing."""

import dataclasses
import itertools
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.pipeline import PackedBatches
from stepaudio_jax.data.set_aside import AT_LEAST, DataError
from stepaudio_jax.text import Conversation
from tests import small
from tests.data import pipeline_process
from tests.data.memory import SHA256, dialogue, dialogues, look, preference, stored

ROW = 160


@pytest.fixture(scope="module")
def sources():
    return [Source("a", dialogues(60, 1), 2), Source("b", dialogues(50, 2, start=1000))]


@pytest.fixture
def run():
    """Makes pipelines that are closed at the end."""
    made = []

    def make(sources, *, batch_rows=4, row_tokens=ROW, too_long="truncate", **options):
        mixture = Mixture(sources, row_tokens=row_tokens, too_long=too_long)
        options = {"seed": 3, "window": 40, "threads": 3} | options
        made.append(PackedBatches(mixture, small.tokenizer(), SHA256, look, batch_rows=batch_rows, **options))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def take(pipeline, n=12):
    return list(itertools.islice(pipeline, n))


def test_an_epoch_holds_what_its_order_says(run, sources):
    pipeline = run(sources, batch_rows=1)
    found = []
    while pipeline.state()["epoch"] == 0:
        (row,) = next(pipeline)
        assert sum(len(ids) for _, ids, *_ in row) <= ROW
        for source, ids, *_ in row:
            number = small.tokenizer().decode(ids).split("number ")[1].split("?")[0]
            found.append((source, int(number) - 1000 * source))
    expected = zip(*(each.tolist() for each in Mixture(sources, row_tokens=ROW).order(3, 0)), strict=True)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 0], [1], [2]]], ids=str)
def test_any_number_of_processes_loads_the_same_batches(run, sources, shares):
    whole = take(run(sources))
    parts = [take(run(sources, rows=rows)) for rows in shares]
    for step, batch in enumerate(whole):
        for rows, part in zip(shares, parts, strict=True):
            assert part[step] == [batch[row] for row in rows]


def test_threads_change_nothing(run, sources):
    assert take(run(sources, threads=1)) == take(run(sources, threads=8))


def test_a_run_goes_on_exactly_from_every_state(run, sources):
    """Over more than an epoch, into a pipeline of its own, of one process or of two."""
    pipeline = run(sources)
    states, batches = [], []
    while pipeline.state()["epoch"] < 2:
        states.append(pipeline.state())
        batches.append(next(pipeline))
    resumed, second = run(sources), run(sources, rows=[2, 3])
    for step, state in enumerate(states[:-2]):
        resumed.restore(state)
        assert resumed.state() == state
        assert [next(resumed), next(resumed)] == batches[step : step + 2]
        assert resumed.state() == states[step + 2]
    second.restore(states[5])
    assert next(second) == batches[5][2:]


def kill_after(files: dict, more: int):
    """Runs a process per file, which loads the file's rows, and kills all of them once each wrote `more` batches."""
    targets = {file: len(pipeline_process.whole_lines(file)) + more for file in files}
    command = [sys.executable, "-m", "tests.data.pipeline_process"]
    running = [subprocess.Popen([*command, str(file), *map(str, rows)]) for file, rows in files.items()]
    try:
        while any(len(pipeline_process.whole_lines(file)) < target for file, target in targets.items()):
            assert all(process.poll() is None for process in running)
            time.sleep(0.01)
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_batches_are_the_same_after_kills_and_on_one_process_after_two(tmp_path):
    halves = {tmp_path / "first": [0, 1], tmp_path / "second": [2, 3]}
    for file in halves:
        file.touch()
    kill_after(halves, 30)
    kill_after(halves, 7)
    first, second = map(pipeline_process.whole_lines, halves)
    whole = tmp_path / "whole"
    whole.write_text((tmp_path / "first").read_text())
    kill_after({whole: [0, 1, 2, 3]}, 20)
    later = pipeline_process.whole_lines(whole)[len(first) :]

    source = pipeline_process.pipeline()
    expected = take(source, len(first) + len(later))
    source.close()
    assert [line["rows"] for line in first] == [rows[:2] for rows in expected[: len(first)]]
    both = min(len(second), len(expected))
    assert [line["rows"] for line in second[:both]] == [rows[2:] for rows in expected[:both]]
    assert [line["rows"] for line in later] == expected[len(first) :]


def test_a_state_of_other_data_is_refused(run, sources):
    state = run(sources).state()
    for other in (run(sources[:1]), run(sources, seed=4), run([sources[0], Source("b", dialogues(49, 2, 1000))])):
        with pytest.raises(DataError, match="expected the plan of rows that the run began with"):
            other.restore(state)


def test_bad_records_leave_their_place_empty(run, sources, caplog):
    whole = take(run(sources), 20)
    a, b = sources
    broken = [Source("a", stored(a.dataset.samples, broken=frozenset({3, 7})), 2), b]
    pipeline = run(broken, max_bad_share=0.5)
    with caplog.at_level(logging.WARNING):
        left = take(pipeline, 20)
    gone = {id(item): item for batch in whole for row in batch for item in row if said(item, (3, 7))}
    assert gone
    assert left == [[[item for item in row if not said(item, (3, 7))] for row in batch] for batch in whole]
    assert set(pipeline.set_aside.reasons) == {"cannot be read"} and pipeline.set_aside.total >= len(gone)
    assert "set aside (cannot be read): memory:3: the bytes are damaged" in caplog.text


def said(item, numbers) -> bool:
    text = small.tokenizer().decode(item[1])
    return any(f"number {number}?" in text for number in numbers)


def test_too_many_bad_records_stop_the_run(run, sources):
    dataset = stored(sources[0].dataset.samples, broken=frozenset(range(0, 60, 5)))
    pipeline = run([Source("a", dataset)], max_bad_share=0.1)
    with pytest.raises(DataError, match=r"of \d+ records set aside \(\d+ cannot be read\), more than max_bad_share 10"):
        take(pipeline, 500)
    assert pipeline.set_aside.seen >= AT_LEAST


def test_every_reason_is_told_apart(run):
    samples = [dialogue(0), dialogue(1), dialogue(2, sounds=[0.01]), dialogue(3), dialogue(4, 200)]
    untrained = Conversation(samples[3].conversation.turns[:1])
    samples[3] = dataclasses.replace(samples[3], conversation=untrained)
    tokens = [stored([s]).tokens[0] if i != 2 else 20 for i, s in enumerate(samples)]
    tokens[1] += 1
    dataset = stored([dialogue(9)] * 5)
    dataset = dataclasses.replace(dataset, samples=samples, tokens=np.array(tokens, np.int32), broken=frozenset({0}))
    pipeline = run([Source("x", dataset)], batch_rows=1, row_tokens=60, max_bad_share=1.0)
    rows = take(pipeline, 20)
    assert {"cannot be read", "length differs", "cannot be rendered", "nothing to train on"} == set(
        pipeline.set_aside.reasons
    )
    assert {len(item[1]) for batch in rows for row in batch for item in row} == {60}  # the fifth, cut


def test_long_records_can_be_left_out(run):
    samples = [dialogue(0), dialogue(1, 300), dialogue(2)]
    pipeline = run([Source("x", stored(samples))], too_long="drop", batch_rows=1)
    items = [item for batch in take(pipeline, 5) for row in batch for item in row]
    assert all(said(item, (0, 2)) for item in items) and pipeline.set_aside.total == 0


@pytest.mark.parametrize("better, worse", [(5, 8), (100, 100), (10, 200), (200, 10)])
def test_preferences_stay_together_and_fit(run, better, worse):
    dataset = stored([preference(i, better, worse) for i in range(20)])
    for batch in take(run([Source("pairs", dataset)]), 6):
        for row in batch:
            assert sum(len(ids) for _, ids, *_ in row) <= ROW and len(row) % 2 == 0 and row
            for first, second in zip(row[::2], row[1::2], strict=True):
                texts = [small.tokenizer().decode(item[1]).split("?")[0] for item in (first, second)]
                assert texts[0] == texts[1]
                lengths = [len(item[1]) for item in (first, second)]
                assert (lengths[0] < lengths[1]) == (better < worse) or min(lengths) == ROW // 2


def test_render_options_reach_the_renderer(run):
    dataset = stored([dialogue(i) for i in range(20)])
    trained = next(run([Source("x", dataset)]))[0][0]
    spared = next(run([Source("x", dataset)], empty_think_loss=False))[0][0]
    assert trained[1] == spared[1] and sum(trained[2]) > sum(spared[2]) > 0


def test_lengths_of_another_tokenizer_or_template_are_refused(run):
    dataset = stored([dialogue(0)])
    other = dataclasses.replace(dataset, info={**dataset.info, "tokenizer_sha256": "6" * 64})
    with pytest.raises(DataError, match=r"sources\.x: expected lengths of the run's tokenizer \(sha256 5{12}…\)"):
        run([Source("x", other)])
    with pytest.raises(DataError, match=r"sources\.x: expected lengths with keep_think=True .*, found False"):
        run([Source("x", dataset)], keep_think=True)
    run([Source("x", dataset)], empty_think_loss=False)  # changes no length


def test_rows_of_no_batch_are_refused(run, sources):
    for rows in ([], [4], [-1]):
        with pytest.raises(ValueError, match="rows: expected some of the 4 rows of a batch"):
            run(sources, rows=rows)


def test_an_error_in_collate_reaches_the_step(sources):
    def collate(rows):
        raise ValueError("chunks: do not fit")

    mixture = Mixture(sources, row_tokens=ROW)
    pipeline = PackedBatches(mixture, small.tokenizer(), SHA256, collate, batch_rows=2, seed=0)
    with pytest.raises(ValueError, match="chunks: do not fit"):
        next(pipeline)
    pipeline.close()
