"""From a config's data section to the batches of a run: what is drawn, in which shares, with what trained in it."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.data import encode
from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.plan import RowPlan
from stepaudio_jax.data.set_aside import DataError
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training import sources
from stepaudio_jax.training.stage import Stage, prepare
from tests import small
from tests.data.memory import MEASURED, dialogue, preference, stored
from tests.training import runs

ROW, TOKENIZER = 160, "the tokenizer's JSON"


def config(**changes):
    made = runs.config(**{"data.buckets": ((ROW, 0),)})
    made.data = {"batch_size": 2, "buckets": ((ROW, 0),), "sources": {}, "weight_by": "tokens", "too_long": "truncate",
                 "window": 40, "threads": 2, "max_bad_share": 0.01, "render": {"empty_think_loss": True}}  # fmt: skip
    made.update_from_flattened_dict(changes)
    return made


def stage_of(config) -> Stage:
    return prepare(config, make_mesh({}, jax.devices()[:1]))


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Makes the source of a config whose data sets are given by name; closed at the end."""
    made = []

    def make(config, **datasets):
        by_path = {f"{name}'s folder": dataset for name, dataset in datasets.items()}
        for name in datasets:
            config.data.sources[name] = {"path": f"{name}'s folder"} | dict(config.data.sources.get(name, {}))
        monkeypatch.setattr(sources, "StoredDataset", by_path.__getitem__)
        made.append(sources.packed_source(config, small.tokenizer(), TOKENIZER, stage_of(config), tmp_path))
        return made[-1]

    yield make
    for source in made:
        source.close()


def texts(n: int, words: int = 5, **fields):
    sha256 = hashlib.sha256(TOKENIZER.encode()).hexdigest()
    info = MEASURED | {"tokenizer_sha256": sha256}
    return stored([dialogue(i, words + i % 7) for i in range(n)], info=info, **fields)


def test_rows_follow_the_data_section(packed):
    """The plan is that of the mixture written out, in every field."""
    made = config(seed=5, **{"data.weight_by": "records", "data.too_long": "drop", "data.window": 30})
    made.data.sources = {"a": {"weight": 3.0, "only": ("text",)}, "b": {"weight": 1.0, "limit": 2.0, "max_records": 20}}
    a, b = texts(60), texts(50, words=9)
    found = packed(made, a=a, b=b)
    mixture = Mixture(
        [Source("a", a, 3.0, ("text",)), Source("b", b, 1.0, limit=2.0, max_records=20)],
        row_tokens=ROW, weight_by="records", too_long="drop",
    )  # fmt: skip
    plan = RowPlan(mixture, seed=5, window=30)
    assert found.state() == {"epoch": 0, "window": 0, "row": 0, "plan": plan.fingerprint()}
    batch, window = next(found), plan.window(0, 0)
    for row in range(2):
        names = [source for source, _ in window.row(row)]
        ends = np.flatnonzero(np.diff(batch.segment_ids[row], append=0))[: len(names)]
        assert batch.sources[row][ends].tolist() == names
    assert set(batch.sources.ravel().tolist()) == {0, 1}


def test_bad_records_are_counted_against_the_share_of_the_config(packed):
    broken = frozenset(range(0, 60, 5))
    lenient = packed(config(**{"data.max_bad_share": 0.5}), a=texts(60, broken=broken))
    while lenient.set_aside.seen < 150:
        next(lenient)
    with pytest.raises(DataError, match=r"more than max_bad_share 5"):
        strict = packed(config(**{"data.max_bad_share": 0.05}), a=texts(60, broken=broken))
        for _ in range(200):
            next(strict)


@pytest.mark.parametrize("trained", [True, False])
def test_the_empty_think_leaves_the_loss_when_the_config_says_so(packed, trained):
    batch = next(packed(config(**{"data.render.empty_think_loss": trained}), a=texts(20)))
    tokenizer = small.tokenizer()
    for row in range(2):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            own = batch.segment_ids[row] == segment
            reply = tokenizer.decode(batch.tokens[row][own].tolist()).split("</think>\n")[1]
            expected = len(tokenizer.encode(reply)) + 1 + trained * len(tokenizer.encode("\n</think>\n"))
            assert batch.loss_mask[row][own].sum() == expected


def test_each_reply_of_a_pair_gets_its_own_reference():
    """By source and record, the better reply's before the worse one's."""
    made = config()
    made.dpo = {"beta": 0.1}
    tokenizer, pair = small.tokenizer(), preference(0)
    both = [encode(conversation, tokenizer) for conversation in (pair.conversation, pair.rejected)]
    scores = [np.full((3, 2), np.nan, np.float32), np.array([[-1, -2], [-3, -4]], np.float32)]

    def of(source, record):
        return [dataclasses.replace(example, source=source, record=record) for example in both]

    rows = [of(1, 1) + of(1, 0), of(1, 0)]
    batch = sources.lay_out(stage_of(made), rows, length=ROW, samples=0, scores=scores)
    sizes = [example.num_tokens for example in both]
    begins = np.cumsum([0, *sizes, *sizes])[:4]
    assert batch.reference[0][begins].tolist() == [-3, -4, -1, -2]
    assert batch.reference[1][begins[:2]].tolist() == [-1, -2] and np.count_nonzero(batch.reference) == 6


def miniature_source(**changes):
    data = {"batch_size": 4, "batches_per_group": 2, "text_share": 0.0, "silent_share": 0.0} | changes
    made = runs.config(**{f"data.{name}": value for name, value in data.items()})
    return sources.MiniatureSource(made, small.tokenizer(), stage_of(made))


def test_the_miniature_follows_its_shares_and_lessons(monkeypatch):
    """All text or none, all silent or none; a lesson ends at its step, counted in batches."""
    source = miniature_source(text_share=1.0)
    assert all(not example.chunks for example in source._draw(np.random.default_rng(0), 0))
    for share, silent in ((0.0, False), (1.0, True)):
        drawn = miniature_source(silent_share=share)._draw(np.random.default_rng(0), 0)
        said = [small.tokenizer().decode(example.rendered.token_ids.tolist()) for example in drawn]
        assert all(example.chunks for example in drawn)
        assert {"I hear nothing, so I guess." in text for text in said} == {silent}
    asked, make = [], miniature.make_question
    monkeypatch.setattr(
        miniature, "make_question",
        lambda rng, kind, max_events: asked.append((kind, max_events)) or make(rng, kind, max_events=max_events),
    )  # fmt: skip
    lessons = ((2, 1, ("timbre",)), (4, 2, ("order", "order")), (6, 3, ("count",)))
    source = miniature_source(curriculum=lessons, batch_size=1, batches_per_group=2, buckets=((256, 65_280),))
    for group, expected in enumerate([("timbre", 1), ("order", 2), ("count", 3), ("count", 3)]):
        asked.clear()
        source._group(group)
        assert asked == [expected] * 2
