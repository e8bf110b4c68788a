"""The plan of rows: each record of an epoch once, full rows, the same from any place on."""

import numpy as np
import pytest

from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.plan import Place, RowPlan, Rows
from tests.data.columns import columns, dialogues


def plan(n=3000, *, seed=5, window=500, **options) -> RowPlan:
    sources = [Source("a", dialogues(n, 1)), Source("b", dialogues(n // 2, 2))]
    return RowPlan(Mixture(sources, row_tokens=10_240, **options), seed=seed, window=window)


def epoch_rows(made: RowPlan, epoch: int) -> list[list[tuple[int, int]]]:
    windows = (made.window(epoch, number) for number in range(made.windows))
    return [window.row(i) for window in windows for i in range(len(window.rows))]


def test_an_epoch_holds_what_its_order_says():
    made = plan()
    items = [item for row in epoch_rows(made, 0) for item in row]
    sources, records = made.mixture.order(5, 0)
    assert sorted(items) == sorted(zip(sources.tolist(), records.tolist(), strict=True))
    lengths = [source.dataset.tokens for source in made.mixture.sources]
    assert all(sum(lengths[s][r] for s, r in row) <= 10_240 for row in epoch_rows(made, 1))


def test_rows_are_full():
    rows = Rows(plan(40_000, window=16_384))
    rows.place(2000)
    assert rows.fullness >= 0.97
    assert rows.planned_tokens <= rows.planned_rows * 10_240


def test_rows_run_through_windows_and_epochs():
    made = plan()
    expected = epoch_rows(made, 0) + epoch_rows(made, 1)
    rows = Rows(made)
    assert [rows[i] for i in range(len(expected))] == expected
    assert rows.place(0) == Place(0, 0, 0)
    assert rows.place(len(epoch_rows(made, 0))) == Place(1, 0, 0)
    assert Rows(made)[len(expected) - 1] == expected[-1]  # asked for first


@pytest.mark.parametrize("number", [0, 1, 17, 130, 260, 400])
def test_a_run_goes_on_from_any_place(number):
    rows = Rows(plan())
    later = Rows(plan(), rows.place(number))
    assert [later[i] for i in range(80)] == [rows[number + i] for i in range(80)]
    assert later.place(50) == rows.place(number + 50)


def test_only_the_window_of_the_place_is_planned_to_go_on():
    made = plan()
    Rows(made, Place(3, 2, 5)).place(0)
    assert made.window.cache_info().misses == 1


def test_seeds_and_epochs_differ_and_rows_are_shuffled():
    made = plan()
    assert made.window(0, 0).rows != made.window(1, 0).rows
    assert made.window(0, 0).records.tolist() != made.window(1, 0).records.tolist()  # not only rows
    assert epoch_rows(made, 0) != epoch_rows(plan(seed=6), 0)
    window = made.window(0, 0)
    longest = [max(made.mixture.lengths(window.sources[row], window.records[row])) for row in window.rows]
    assert longest != sorted(longest, reverse=True)


def test_pairs_share_a_row():
    data = columns(np.full(100, 30), rejected_tokens=np.full(100, 25))
    made = RowPlan(Mixture([Source("pairs", data)], row_tokens=120), seed=0)
    assert {len(row) for row in epoch_rows(made, 0)} == {2}  # 2 × 55 tokens, a third pair does not fit


def test_a_set_smaller_than_a_row_goes_round():
    made = RowPlan(Mixture([Source("a", columns([10, 20, 30]))], row_tokens=100), seed=0)
    rows = Rows(made)
    assert [sorted(rows[i]) for i in range(5)] == [[(0, 0), (0, 1), (0, 2)]] * 5
    assert rows.place(4) == Place(4, 0, 0)


def test_the_fingerprint_knows_the_data():
    assert plan().fingerprint() == plan().fingerprint()
    others = [plan(2998), plan(seed=6), plan(window=400), plan(too_long="drop", weight_by="records")]
    assert plan().fingerprint() not in {other.fingerprint() for other in others}
