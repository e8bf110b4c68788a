"""From which checkpoint each step of MGRD and of self-cognition begins, and what it is given to learn from.

The steps themselves are replaced by ones that remember what they were given.
"""

import types

import ml_collections
import pytest

from stepaudio_jax.rl import mgrd, self_cognition
from stepaudio_jax.rl.distil import Found
from stepaudio_jax.rl.filter import Count
from stepaudio_jax.rl.rollout import Prompt
from stepaudio_jax.text import Conversation, human
from stepaudio_jax.training import read_config


class Source:
    name, weight = "miniature", 1.0

    def __len__(self):
        return 3

    def prompt(self, record):
        return Prompt(Conversation((human(f"Question {record}"),)), "x", self.name, "exact")


@pytest.fixture
def steps(monkeypatch):
    """What was done, in order: (name, the checkpoint it began from, …)."""
    done = []

    def asked(engine, sources, score, folder, asking, *, keep, records=None, console=None):
        # Without sound, or of what has been taught: the former asks all sources, the latter of some records.
        done.append(("questions" if records is None else "filter", engine, asking.model))
        return [Count("miniature", record, keep[1], asking.samples, asking.samples) for record in range(3)]

    def distilled(engine, sources, score, judge, folder, asking, **options):
        done.append(("distil", engine, asking.model, options["records"]["miniature"]))
        return [Found("miniature", 1, "I hear: 2", "2", "kept")]

    def supervised(config, folder):
        done.append(("sft", config.init, config.data.sources.audio.path))
        return folder / "checkpoint"

    def reinforced(config, folder, score):
        done.append(("rlvr", config.init, config.prompts.kept))
        return folder / "checkpoint"

    monkeypatch.setattr(mgrd, "sources_of", lambda config: [Source()])
    monkeypatch.setattr(mgrd, "load_engine", lambda checkpoint, **options: checkpoint)
    monkeypatch.setattr(mgrd, "filter_prompts", asked)
    monkeypatch.setattr(mgrd.distil, "distil", distilled)
    monkeypatch.setattr(mgrd, "write_samples", lambda *given: None)
    monkeypatch.setattr(mgrd.checkpoints, "locate", lambda checkpoint: checkpoint)
    monkeypatch.setattr(mgrd, "train", supervised)
    monkeypatch.setattr(mgrd.loop, "train", reinforced)
    monkeypatch.setattr(mgrd.mgrd_report, "write", lambda *given: None)
    return done


def test_each_step_of_mgrd_begins_where_the_one_before_ended(steps, tmp_path):
    """R1 §4.2: a round's questions and replies are of the model of the round before; SFT goes on from that model, the
    filter asks what SFT has made, and RLVR goes on from it."""
    config = read_config("configs/mgrd_tiny.py", ["--config.init=start", "--config.rounds=2"])
    evaluated = []
    last = mgrd.mgrd(config, tmp_path, score=None, evaluate=lambda engine: evaluated.append(engine) or {"x": 1.0})

    def made(number, step):
        return str(tmp_path / f"round_{number}" / step / "run" / "checkpoint")

    expected = []
    for number, begins in ((1, "start"), (2, made(1, "rlvr"))):
        taught, folder = made(number, "sft"), tmp_path / f"round_{number}"
        expected += [
            ("questions", begins, begins),
            ("distil", begins, begins, [0, 1, 2]),
            ("sft", begins, str(folder / "distil" / "data")),
            ("filter", taught, taught),
            ("rlvr", taught, str(folder / "filter" / "kept.json")),
        ]
    assert steps == expected
    assert evaluated == ["start", made(1, "rlvr"), made(2, "rlvr")] and str(last) == made(2, "rlvr")


def test_a_pair_prefers_the_reply_that_hears(monkeypatch, tmp_path):
    """R1 §6.3: good is a reply that uses its hearing, bad one that denies it, of one prompt; the later model's."""
    written = []
    work = object.__new__(self_cognition._Work)
    work.config = ml_collections.ConfigDict({"most_pairs": 9, "rendering": {}})
    work.sources = [Source()]
    monkeypatch.setattr(work, "_recipe", lambda checkpoint: types.SimpleNamespace())
    monkeypatch.setattr(self_cognition, "write_samples", lambda folder, samples, recipe: written.extend(samples))
    hears, denies, other = self_cognition.HEARS, self_cognition.DENIES, self_cognition.OTHER
    before = [Found("miniature", 0, "heard early", "2", hears), Found("miniature", 0, "no ears", "?", denies),
              Found("miniature", 1, "no ears", "?", denies), Found("miniature", 2, "heard", "2", hears)]  # fmt: skip
    after = [Found("miniature", 0, "heard late", "3", hears), Found("miniature", 2, "hm", "2", other)]
    assert work._pairs(tmp_path, before, after, "taught") == {"data": str(tmp_path / "data"), "pairs": 1}
    (pair,) = written
    assert (pair.conversation.turns[-1].think, pair.conversation.turns[-1].text) == ("heard late", "3")
    assert (pair.rejected.turns[-1].think, pair.rejected.turns[-1].text) == ("no ears", "?")
    assert pair.conversation.turns[0] == pair.rejected.turns[0] == human("Question 0")


def test_each_step_of_self_cognition_begins_where_the_one_before_ended(monkeypatch, tmp_path):
    """Replies before, SFT on those that hear, replies after, DPO of the taught model's pairs, replies of the last."""
    done, written = [], []
    replies = [Found("miniature", 0, "heard", "2", self_cognition.HEARS),
               Found("miniature", 0, "no ears", "?", self_cognition.DENIES)]  # fmt: skip

    def asked(self, name, checkpoint):
        done.append((name, checkpoint))
        return replies

    def train(config, folder):
        source = config.data.sources.pairs if "dpo" in config else config.data.sources.own
        done.append((config.init, source.path))
        return folder / "checkpoint"

    monkeypatch.setattr(self_cognition._Work, "_replies", asked)
    monkeypatch.setattr(self_cognition._Work, "_recipe", lambda self, checkpoint: types.SimpleNamespace())
    monkeypatch.setattr(self_cognition, "sources_of", lambda config: [Source()])
    monkeypatch.setattr(self_cognition, "write_samples", lambda folder, samples, recipe: written.extend(samples))
    monkeypatch.setattr(self_cognition, "train", train)
    config = read_config("configs/self_cognition_tiny.py", ["--config.init=start"])
    last = self_cognition.self_cognition(config, tmp_path)
    taught, preferred = (str(tmp_path / name / "run" / "checkpoint") for name in ("sft", "dpo"))
    assert done == [
        ("before", "start"),
        ("start", str(tmp_path / "sft" / "data")),
        ("after_sft", taught),
        (taught, str(tmp_path / "pairs" / "data")),
        ("after_dpo", preferred),
    ]
    assert str(last) == preferred
    learnt_from, pair = written
    assert learnt_from.conversation.turns[-1].think == pair.conversation.turns[-1].think == "heard"
    assert learnt_from.rejected is None and pair.rejected.turns[-1].think == "no ears"
