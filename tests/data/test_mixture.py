"""Mixtures: shares in every stretch, passes, limits, filters, ends of epochs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data.lengths import HAS_AUDIO, HAS_THINK
from stepaudio_jax.data.mixture import Mixture, Source
from tests.data.columns import columns, dialogues


def mixture(*sources, **options):
    return Mixture(sources, **{"row_tokens": 10_240, "weight_by": "records"} | options)


def drawn(mixed: Mixture, epoch=0, start=0.0, stop=None, seed=7) -> list[list[int]]:
    """Records drawn of each source."""
    sources, records = mixed.order(seed, epoch, start, stop)
    return [records[sources == i].tolist() for i in range(len(mixed.sources))]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 40),
            st.floats(0.2, 5),
            st.one_of(st.none(), st.floats(0.05, 4)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 9),
)
def test_stretches_tile_the_epoch_and_each_source_is_gone_through(sources, parts):
    mixed = mixture(*(Source(f"s{i}", dialogues(n), w, limit=limit) for i, (n, w, limit) in enumerate(sources)))
    edges = [mixed.end * i / parts for i in range(parts + 1)]
    pieces = [drawn(mixed, start=a, stop=b) for a, b in itertools.pairwise(edges)]
    whole = drawn(mixed)
    passes = []
    for i, (n, _, limit) in enumerate(sources):
        assert [record for piece in pieces for record in piece[i]] == whole[i]
        most = np.inf if limit is None else max(1, int(limit * n))
        assert min(n, most) <= len(whole[i]) <= most
        for start in range(0, len(whole[i]), n):  # every pass: each record at most once, full ones each exactly once
            records = whole[i][start : start + n]
            assert len(set(records)) == len(records) and set(records) <= set(range(n))
        passes.append(len(whole[i]) / min(n, most))
    assert min(passes) == 1  # it ends as soon as the last source has been gone through, no later


@pytest.mark.parametrize("by", ["records", "tokens"])
def test_weights_hold_in_every_window(by):
    """Shares of records to within one record; of tokens to within five standard errors of the sampled lengths."""
    short, long = columns(np.full(9000, 100)), dialogues(9000)
    mixed = mixture(Source("short", short, 1), Source("long", long, 3), weight_by=by)
    for start in np.arange(0, mixed.end - 1000, 1000):
        sources, records = mixed.order(7, 0, start, start + 1000)
        lengths = mixed.lengths(sources, records)
        if by == "records":
            assert abs(np.count_nonzero(sources == 1) - 750) <= 1 and abs(len(sources) - 1000) <= 2
        else:
            n = np.count_nonzero(sources == 1)
            error = 5 * long.tokens.std() * np.sqrt(n) + long.tokens.max()
            assert abs(lengths[sources == 1].sum() - 3 * lengths[sources == 0].sum()) < error


def test_every_pass_and_epoch_has_an_order_of_its_own():
    mixed = mixture(Source("a", dialogues(50)), Source("b", dialogues(100)))
    a, _ = drawn(mixed)
    assert len(a) == 100 and a[:50] != a[50:] and a[:50] != list(range(50))
    assert drawn(mixed, epoch=1) != drawn(mixed) != drawn(mixed, seed=8)
    assert drawn(mixed) == drawn(mixture(Source("a", dialogues(50)), Source("b", dialogues(100))))


def test_an_epoch_ends_with_the_last_first_pass_or_limit():
    """Counts by hand: b, of weight 1 in 4, takes 100 records, so a takes 300 of its 50, six passes."""
    a, b = dialogues(50), dialogues(100)
    assert [len(x) for x in drawn(mixture(Source("a", a, 3), Source("b", b, 1)))] == [300, 100]
    # with two passes at most, a drops out after 100 records, b goes on alone
    mixed = mixture(Source("a", a, 3, limit=2), Source("b", b, 1))
    assert [len(x) for x in drawn(mixed)] == [100, 100]
    assert [len(x) for x in drawn(mixed, start=140)] == [0, 60]
    # a half of each
    assert [len(x) for x in drawn(mixture(Source("a", a, limit=0.5), Source("b", b, limit=0.5)))] == [25, 50]


def test_filters_choose_records():
    kind = [0, HAS_AUDIO, HAS_THINK, HAS_AUDIO | HAS_THINK] * 3
    data = columns(np.full(12, 10), kind=kind)
    expected = {
        ("audio",): {1, 3, 5, 7, 9, 11},
        ("text",): {0, 2, 4, 6, 8, 10},
        ("audio", "cot"): {3, 7, 11},
        ("empty_think", "text"): {0, 4, 8},
    }
    for only, records in expected.items():
        assert set(drawn(mixture(Source("a", data, only=only)))[0]) == records
    assert set(drawn(mixture(Source("a", data, only=("cot",), max_records=4)))[0]) == {2, 3, 6, 7}


def test_long_records_are_cut_or_left_out():
    data = columns([50, 101, 100, 60, 40], rejected_tokens=[0, 0, 0, 50, 50])
    cut = mixture(Source("a", data), row_tokens=100)
    sources, records = cut.order(0, 0)
    assert dict(zip(records.tolist(), cut.lengths(sources, records).tolist(), strict=True)) == {
        0: 50,
        1: 100,
        2: 100,
        3: 100,
        4: 90,
    }
    kept = mixture(Source("a", data), row_tokens=100, too_long="drop")
    assert set(drawn(kept)[0]) == {0, 2, 4} and kept.left_out == [2]


def test_mistakes_name_the_source():
    data = columns([10, 20], kind=HAS_AUDIO)
    wrong = {
        "sources.x: expected records to train on, found none among 2: only=\\('text',\\)": {"only": ("text",)},
        "sources.x.only: expected one of audio, text, cot, empty_think, found \"speech\"": {"only": ("speech",)},
        "sources.x.weight: expected a number above 0, found -1": {"weight": -1},
        "sources.x.limit: expected": {"limit": 0},
        "sources.x.max_records: expected": {"max_records": 0},
    }
    for message, fields in wrong.items():
        with pytest.raises(ValueError, match=message):
            mixture(Source("x", data, **fields))
    with pytest.raises(ValueError, match="2 left out as longer than a row of 5 tokens"):
        mixture(Source("x", data), row_tokens=5, too_long="drop")
    with pytest.raises(ValueError, match=r"sources\.x: two sources have this name"):
        mixture(Source("x", data), Source("x", data))
    with pytest.raises(ValueError, match=r"sources\.x: record 1 has no tokens"):
        mixture(Source("x", columns([10, 0])))
    with pytest.raises(ValueError, match="weight_by: expected one of tokens, records"):
        mixture(Source("x", data), weight_by="bytes")
    with pytest.raises(ValueError, match="at least one"):
        mixture()
