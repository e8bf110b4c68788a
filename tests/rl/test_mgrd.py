"""MGRD and self-cognition on the tiny model, small enough to run: what they keep and write, and that they go on."""

import functools
import json

import numpy as np
import pytest

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.evals.miniature import examine_listening
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.rl import distil, grounding, mgrd, self_cognition
from stepaudio_jax.rl.distil import Found
from stepaudio_jax.rl.prompts import sources_of
from stepaudio_jax.rl.rollout import Sampled
from stepaudio_jax.rl.scoring import score
from stepaudio_jax.training import read_config

KINDS = "prompts.miniature.kinds=('direction','timbre')"
ROLLOUTS = ("rl.prompts=2", "rl.samples=2", "rl.rows=4", "rl.sound_rows=4", "rl.row_tokens=160", "rl.max_new_tokens=64",
            "rl.engine.max_rows=8")  # fmt: skip
FEW = ("init=tiny", "rounds=1", "prompts.miniature.records=6", "prompts.miniature.max_events=2", KINDS,
       "control.samples=2", "control.most=2", "distil.samples=3", "filter.samples=2", "filter.least=0",
       "filter.most=2", "sft.steps=2", "sft.optim.warmup_steps=1", "sft.data.batch_size=2",
       "sft.data.buckets=((256,327680),)", "rlvr.steps=1", "rlvr.rl.critic_minibatches=1",
       "rlvr.scan_layers=True", "rlvr.optim.warmup_steps=0", "rlvr.critic_optim.warmup_steps=0")  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def scoring(runner):
    return functools.partial(score, runner)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A stored data set of reasoning without sound."""
    questions = [miniature.make_text_question(np.random.default_rng(seed)) for seed in range(20)]
    folder = tmp_path_factory.mktemp("texts") / "built"
    write_samples(folder, [Sample(q.conversation) for q in questions], Recipe(str(checkpoints.locate("tiny"))))
    return folder


def options(path, *more):
    return read_config(path, [f"--config.{each}" for each in more])


def test_a_round(scoring, texts, tmp_path):
    """It is ended while it scores the filter's replies, and goes on from there."""
    config = options(
        "configs/mgrd_tiny.py", *FEW, *(f"rlvr.{each}" for each in ROLLOUTS), f"sft.data.sources.text.path={texts}"
    )
    folder, calls = tmp_path / "mgrd", []

    def dying(prompts, sampled):
        calls.append(len(sampled))
        if len(calls) == 3:  # questions, distil, filter
            raise KeyboardInterrupt
        return scoring(prompts, sampled)

    with pytest.raises(KeyboardInterrupt):
        mgrd.mgrd(config, folder, dying)
    done = {path.parent.name for path in folder.glob("round_1/*/done.json")}
    assert done == {"questions", "distil", "sft"}
    calls.append(0)
    look = functools.partial(examine, calls)
    checkpoint = mgrd.mgrd(config, folder, dying, evaluate=look)
    assert calls[4:] == ["look", 12, 4, "look"]
    assert checkpoints.read_config(checkpoint)
    start, first = json.loads((folder / "report.json").read_text())
    assert first["questions"]["asked"] == 6 and sum(first["questions"]["histogram"]) == 6
    assert first["distil"]["replies"] == 18 == sum(first["distil"]["outcomes"].values())
    kept = first["distil"]["outcomes"]["kept"]
    data = StoredDataset(folder / "round_1/distil/data")
    assert 1 <= kept == len(data) <= 6
    reply = data[0].conversation.turns[-1]
    assert reply.think.startswith("I hear:") and data[0].conversation.audio
    assert {"scores", "filter", "rlvr"} <= set(first) and start["scores"] == {"looks": 1.0}
    assert "Round 1" in (folder / "report.html").read_text()
    with pytest.raises(ValueError, match="another config"):
        mgrd.mgrd(options("configs/mgrd_tiny.py", *FEW, "seed=1"), folder, dying)


def examine(calls, engine):
    calls.append("look")
    return {"looks": float(calls.count("look"))}


def reply(outcome, record=0, answer="2"):
    return Found("words", record, "I hear: 2", answer, outcome)


def test_a_round_in_which_nothing_is_kept_says_why(scoring, texts, tmp_path):
    config = options(
        "configs/mgrd_tiny.py", *FEW, *(f"rlvr.{each}" for each in ROLLOUTS), "judge=tests.rl.functions:hears_nothing"
    )
    with pytest.raises(ValueError, match=r"round 1: none of 18 replies can be learnt from: .*heard what was not there"):
        mgrd.mgrd(config, tmp_path / "mgrd", scoring)


def test_why_a_reply_is_dropped():
    """By the first reason that holds: unfinished, not right, reasoned from a text, nothing heard is named; a judge."""
    rules = grounding.Rules()
    heard, said = "I hear: two tones, the second louder.", "The caption says that there are two."

    def outcome(think, right, *, complete=True, truncated=False):
        return distil._by_rules(Sampled(0, 0, (1,), (0.0,), think, "2", complete, truncated), right, rules)

    assert outcome(heard, True) == distil.KEPT
    assert outcome(heard, False) == outcome(said, False) == distil.WRONG
    assert outcome(heard, None) == distil.UNSCORED
    assert outcome(said, True) == distil.SURROGATE
    assert outcome("It is two.", True) == distil.NO_EVIDENCE
    unfinished = (outcome(" ", True), outcome(heard, True, complete=False), outcome(heard, True, truncated=True))
    assert set(unfinished) == {distil.UNFINISHED}
    verdicts = {(True, True): distil.KEPT, (False, True): distil.UNGROUNDED, (True, False): distil.INCOHERENT,
                (None, True): distil.UNREADABLE, (True, None): distil.UNREADABLE}  # fmt: skip
    assert {pair: distil._by_judge(grounding.Verdict(*pair)) for pair in verdicts} == verdicts


def test_at_most_so_many_of_a_prompt_are_kept():
    outcomes = [distil.KEPT, distil.WRONG, distil.KEPT, distil.KEPT]
    assert distil._first(outcomes, 2) == [distil.KEPT, distil.WRONG, distil.KEPT, distil.ENOUGH]
    found = [reply(outcome) for outcome in outcomes]
    assert distil.counts(found) == {"kept": 3, "wrong answer": 1}
    assert [len(each) for each in distil.examples(found, 2).values()] == [2, 1]


def test_without_sound_nothing_of_it_is_left():
    config = options("configs/mgrd_tiny.py", *FEW)
    source = sources_of(config)[0]
    deaf = mgrd.Deaf(source)
    assert (deaf.name, len(deaf)) == (source.name, 6)
    for record in range(3):
        whole, without = source.prompt(record), deaf.prompt(record)
        assert whole.conversation.audio and not without.conversation.audio
        assert [turn.text for turn in without.conversation.turns] == [turn.text for turn in whole.conversation.turns]


def test_self_cognition(tmp_path, monkeypatch):
    """Here a reply that heard a loud sound first counts as one that denies."""
    monkeypatch.setattr(self_cognition, "denies", lambda text: text.startswith("I hear:\n1 loud"))
    config = options(
        "configs/self_cognition_tiny.py", "init=tiny", "samples=4", "prompts.miniature.records=6", KINDS, *ROLLOUTS,
        "rl.temperature=2.0", "prompts.miniature.max_events=2", *(f"{run}.{each}" for run in ("sft", "dpo") for each in
        ("steps=2", "optim.warmup_steps=1", "data.batch_size=2", "data.buckets=((512,655360),)")),
    )  # fmt: skip
    checkpoint = self_cognition.self_cognition(config, tmp_path / "work")
    assert checkpoints.read_config(checkpoint)
    stages = json.loads((tmp_path / "work/report.json").read_text())
    assert [stage["stage"] for stage in stages] == ["before", "after_sft", "after_dpo"]
    for stage in stages:
        assert stage["replies"] == 24 and sum(stage["shares"].values()) == pytest.approx(1)
    taught = StoredDataset(tmp_path / "work/sft/data")
    assert len(taught)
    for i in range(len(taught)):
        assert not taught[i].conversation.turns[-1].think.startswith("I hear:\n1 loud")
    pairs = StoredDataset(tmp_path / "work/pairs/data")
    for i in range(len(pairs)):
        better, worse = (side.turns[-1].think for side in (pairs[i].conversation, pairs[i].rejected))
        assert worse.startswith("I hear:\n1 loud") and not better.startswith("I hear:\n1 loud")
    again = self_cognition.self_cognition(config, tmp_path / "work")
    assert again == checkpoint


def test_the_examination_of_listening(tmp_path):
    found = examine_listening(load_engine("tiny").generate, per_kind=1)
    assert set(found) == {"accuracy, caption right", "accuracy, caption wrong", "misled by the caption",
                          "reasons from the sound"}  # fmt: skip
    assert all(0 <= value <= 1 for value in found.values())
