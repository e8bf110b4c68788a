"""The difficulty filter: what it counts and keeps, that an interruption changes nothing, and what a run makes of it."""

import json

import ml_collections
import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.inference import SamplingParams
from stepaudio_jax.rl import ask
from stepaudio_jax.rl.ask import Asking
from stepaudio_jax.rl.filter import accuracy_of, filter_prompts
from stepaudio_jax.rl.prompts import Prompts, Source, sources_of
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollout import Prompt, rollout
from stepaudio_jax.text import Conversation, human
from stepaudio_jax.training import read_config
from tests.rl import runs

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=3)


class Words(Source):
    """Twelve questions."""

    name, weight = "words", 1.0

    def __len__(self):
        return 12

    def prompt(self, record):
        return Prompt(Conversation((human(f"Say {record}"),)), str(record), self.name, Reward("audio"))


def right(prompts, sampled):
    """Half of the first tokens, and of prompt 5 nothing can be said."""
    values = np.array([each.token_ids[0] % 2 == 0 for each in sampled], np.float32)
    return values, np.array([prompt.truth != "5" for prompt in prompts]), {}


@pytest.fixture(scope="module")
def engine():
    return runs.engine_of(runs.learners(critic=False)[0])


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(ask, "AT_ONCE", 4)


def run(engine, folder, score=right, *, keep=(1, 3), seed=3, records=None):
    asking = Asking(4, SAMPLING, seed, "toy")
    return filter_prompts(engine, [Words()], score, folder, asking, keep=keep, records=records)


def test_counts_are_of_the_replies_and_what_is_kept_of_the_counts(engine, tmp_path, small_steps):
    counts = run(engine, tmp_path)
    for first in (0, 4, 8):
        prompts = [Words().prompt(first + i) for i in range(4)]
        sampled = rollout(engine, prompts, 4, SAMPLING, (3, first))
        expected = right([prompts[each.prompt] for each in sampled], sampled)[0].reshape(4, 4).sum(1)
        assert [c.right for c in counts[first : first + 4] if c.record != 5] == [
            e for i, e in enumerate(expected) if first + i != 5
        ]
    document = json.loads((tmp_path / "kept.json").read_text())
    expected = [count.record for count in counts if 1 <= count.right <= 3 and count.record != 5]
    assert document["sources"] == {"words": {"records": 12, "kept": expected}} and 0 < len(expected) < 12
    assert "replies right, of 4" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"about.json", "prompts.jsonl", "kept.json", "report.html"}


def test_right_is_more_than_a_half(engine, tmp_path):
    """What a reply has for its reasoning alone, 0.2, does not make it right; 0.5 is no answer either, 0.8 is."""

    def scored(prompts, sampled):
        by_record = {"0": 0.2, "1": 0.5, "2": 0.8}
        return np.array([by_record[prompt.truth] for prompt in prompts], np.float32), np.ones(len(prompts), bool), {}

    counts = run(engine, tmp_path, scored, records={"words": [0, 1, 2]})
    assert [count.right for count in counts] == [0, 0, 4]


def test_an_interruption_changes_nothing(engine, tmp_path, small_steps):
    whole = run(engine, tmp_path / "whole")
    calls = []

    def dying(prompts, sampled):
        calls.append(len(sampled))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(prompts, sampled)

    with pytest.raises(KeyboardInterrupt):
        run(engine, tmp_path / "other", dying)
    assert not (tmp_path / "other/kept.json").exists()
    assert (tmp_path / "other/replies-00000004.jsonl").exists()
    with (tmp_path / "other/prompts.jsonl").open("a") as file:
        file.write('{"source": "words", "rec')  # killed while it wrote
    calls += [0]
    assert run(engine, tmp_path / "other", dying) == whole
    assert calls[3:] == [16, 16]  # the first four prompts were not asked again
    for name in ("prompts.jsonl", "kept.json"):
        assert (tmp_path / "other" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_other_bounds_ask_nothing_again_and_another_question_is_refused(engine, tmp_path):
    counts = run(engine, tmp_path)

    def never(prompts, sampled):
        raise AssertionError

    assert run(engine, tmp_path, never, keep=(0, 4)) == counts
    assert len(json.loads((tmp_path / "kept.json").read_text())["sources"]["words"]["kept"]) == 11
    with pytest.raises(ValueError, match="begun with other seed; name another folder"):
        run(engine, tmp_path, seed=4)
    with pytest.raises(ValueError, match="keep: expected bounds from 0 to the 4 samples, found 3 to 5"):
        run(engine, tmp_path, keep=(3, 5))


def test_some_records_keep_their_numbers(engine, tmp_path):
    counts = run(engine, tmp_path, records={"words": [2, 7, 9]}, keep=(0, 4))
    assert [count.record for count in counts] == [2, 7, 9]
    assert json.loads((tmp_path / "kept.json").read_text())["sources"]["words"] == {"records": 12, "kept": [2, 7, 9]}


def test_right_is_said_by_the_reward_within():
    assert accuracy_of(Reward("audio", {"accuracy": "choice"})) == "choice"
    assert accuracy_of("exact") == "exact"


def of_the_small_world(**changed):
    config = read_config("configs/rlvr_tiny.py", ["--config.prompts.miniature.records=20"])
    config = ml_collections.ConfigDict(config.to_dict())
    config.rl.prompts = 10
    config.prompts.update(changed)
    return config


def test_a_run_draws_only_what_was_kept(tmp_path):
    path, kept = tmp_path / "kept.json", [3, 4, 11, 17, 19]
    path.write_text(json.dumps({"sources": {"miniature": {"records": 20, "kept": kept}}}))
    prompts = Prompts(of_the_small_world(kept=str(path)))
    whole = Prompts(of_the_small_world())
    scenes = {whole._sources[0].prompt(record).extra["scene"] for record in kept}
    for update in range(3):
        drawn = [prompt.extra["scene"] for prompt in prompts(update)]
        assert set(drawn[:5]) == set(drawn[5:]) == scenes  # two passes
        assert drawn == [prompt.extra["scene"] for prompt in prompts(update)]
    first, second = (prompt.truth for prompt in whole(0)), (prompt.truth for prompt in whole(1))
    assert len({*first, *second}) > 3 and isinstance(next(iter(scenes)), miniature.Scene)


def test_what_was_kept_of_something_else_is_refused(tmp_path):
    path = tmp_path / "kept.json"
    for found, message in (
        ({"miniature": {"records": 30, "kept": [1]}}, "expected 20 records of miniature filtered, found 30"),
        ({"other": {"records": 20, "kept": [1]}}, "expected 20 records of miniature filtered, found none"),
        ({"miniature": {"records": 20, "kept": []}}, "miniature: expected records, found none"),
    ):
        path.write_text(json.dumps({"sources": found}))
        with pytest.raises(ValueError, match=message):
            Prompts(of_the_small_world(kept=str(path)))


def test_an_endless_source_is_refused(engine, tmp_path):
    config = of_the_small_world()
    config.prompts.miniature.records = 0
    with pytest.raises(ValueError, match=r"prompts.miniature: expected a number of records, e.g. records=1000"):
        filter_prompts(engine, sources_of(config), right, tmp_path, Asking(8, SAMPLING, 0, "toy"))
