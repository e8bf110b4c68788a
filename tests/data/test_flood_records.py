"""A small, seeded share of tools/flood_records.py: no broken record may get anything but a reason out of a reader."""

import json
from collections import Counter
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCHEMAS = ["swift", "swift-rejected", "swift-query", "sharegpt", "sharegpt-pair", "chat", "openai", "trl", "trl-pair",
           "trl-text", "verl"]  # fmt: skip
FILES = ["json", "parquet", "arrayrecord", "arrayrecord-samples", "stored", "tfds"]
KINDS = [*(f"jsonl-{schema}" for schema in SCHEMAS), *FILES]


@pytest.fixture(scope="module")
def flood(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import flood_records  # pyright: ignore[reportMissingImports]

        yield flood_records.Flood(tmp_path_factory.mktemp("flood"))


def test_every_kind_is_there_and_its_records_are_good_before_they_are_broken(flood):
    from stepaudio_jax.data.check import check

    assert list(flood.kinds) == KINDS
    path = flood.folder / "good.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in flood.schemas.values()))
    findings = check([path], flood.tokenizer)
    assert (findings.good, findings.bad) == (len(flood.schemas), [])


@pytest.mark.parametrize("kind", KINDS)
def test_broken_records_get_a_reason(flood, kind):
    results = Counter(flood.send(kind, 7, number) for number in range(12))
    assert results["read"] < results.total() == 12  # and some of them are broken indeed
