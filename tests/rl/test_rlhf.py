"""RLHF from its config, on the tiny model: what is judged, the reference that moves, and that nothing is lost."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax import checkpoints
from stepaudio_jax.judges import Counters, Recorded, Reply
from stepaudio_jax.rl import loop
from stepaudio_jax.rl.prompts import Prompts, with_rubric
from stepaudio_jax.rl.reward_model import RewardModel
from stepaudio_jax.rl.reward_model.build import make_reward_model
from stepaudio_jax.rl.reward_model.scoring import MixedScore
from stepaudio_jax.text import Conversation, human, system
from stepaudio_jax.training import read_config
from tests import small
from tests.judges.test_endpoint import Server

SMALL = ("init=tiny", "steps=3", "rl.prompts=4", "rl.samples=2", "rl.rows=4", "rl.sound_rows=4", "rl.minibatches=1",
         "optim.warmup_steps=1", "checkpoints.save_every=1", "prompts.dialogues.max_events=1", "rl.guards.length=0.1",
         "rl.max_new_tokens=80", "rl.engine.max_rows=8", "scan_layers=True")  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_device")


def config(*more: str):
    return read_config("configs/rlhf_tiny.py", [f"--config.{each}" for each in (*SMALL, *more)])


class Wordy:
    """Prefers the longer of two replies; remembers how many it was asked about, and dies when it is asked too often."""

    name = "wordy"

    def __init__(self, dies_at=None):
        self.counters, self._calls, self._dies_at = Counters(), itertools.count(1), dies_at

    def __call__(self, questions):
        if next(self._calls) == self._dies_at:
            raise KeyboardInterrupt
        return [self._one(question.conversation.turns[-1].text) for question in questions]

    def _one(self, text):
        first, second = (len(text.split(f"<reply {n}>\n")[1].split("\n</reply")[0]) for n in (1, 2))
        return Reply(f"Hm.\nVerdict: {'equal' if first == second else 'better' if first > second else 'worse'}")


def lines_of(path, name="loss"):
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def checksums(path):
    return json.loads((path.parent / "checkpoints/000003/run.json").read_text())["checksums"]


MOVING = ("reward_model.references=reference", "rl.reference.every=1", "rl.reference.rate=0.5",
          "optim.learning_rate=3e-3")  # fmt: skip


@pytest.fixture(scope="module")
def whole(runner, tmp_path_factory):
    """References are written by a policy that follows; the judge's replies are kept."""
    folder = tmp_path_factory.mktemp("rlhf")
    judge = Recorded(folder / "judge.jsonl", Wordy())
    with small.devices(1):
        return loop.train(config(*MOVING), folder / "run", MixedScore(runner, RewardModel(judge)))


def test_what_is_judged_is_told(whole):
    lines = lines_of(whole)
    assert [line["step"] for line in lines] == [1, 2, 3] and all(line["judge/read"] > 0 for line in lines)
    names = set().union(*lines)
    assert {"reward/rubric", "reward/preference", "guards/length", "guards/verdict", "kl_to_reference"} <= names
    assert {"seconds/references", "kl_loss"} <= names
    assert lines[0]["kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert lines[2]["kl_to_reference"] > 1e-6  # the rate begins at 0
    assert not list((whole.parent / "rollouts").iterdir())


def test_killed_while_it_judges_it_ends_with_the_same_bits(whole, runner, tmp_path):
    """Also the reference, which has moved by then; the rollouts that were written are not written again."""
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(*MOVING), tmp_path / "run", MixedScore(runner, RewardModel(Wordy(dies_at=2))))
    left = sorted(path.name for path in (tmp_path / "run/rollouts").iterdir())
    assert left == ["000001-references.jsonl", "000001.jsonl"]
    path = loop.train(config(*MOVING), tmp_path / "run", MixedScore(runner, RewardModel(Wordy())))
    assert checksums(path) == checksums(whole)


def test_a_replay_of_the_judge_is_the_same_run(whole, runner, tmp_path):
    log = whole.parent.parent / "judge.jsonl"
    made = config(*MOVING, "reward_model.judge=replay", f"reward_model.at={log}")
    path = loop.train(made, tmp_path / "run", MixedScore(runner, make_reward_model(made, tmp_path / "run")))
    assert checksums(path) == checksums(whole)
    assert [line["reward"] for line in lines_of(path)] == [line["reward"] for line in lines_of(whole)]


def test_a_judge_without_a_verdict_teaches_nothing_and_ends_nothing(runner, tmp_path):
    """One that is asked of dialogues alone and never answers: all is masked, and the weights stay."""

    class Down(Wordy):
        def _one(self, text):
            return Reply(error="503")

    folder = tmp_path / "run"
    made = config("steps=2", "prompts.miniature.weight=1e-9", "rl.kl.weight=0", "optim.weight_decay=0",
                  "save_dtype=float32")  # fmt: skip
    path = loop.train(made, folder, MixedScore(runner, RewardModel(Down())))
    for line in lines_of(path):
        assert line["without_reward"] == line["judge/no answer"] > 0
        assert line["judge/no answer"] + line["judge/unfinished"] == 1  # whose thinking never ended: nobody is asked
    begun, ended = (nnx.state(checkpoints.load(at, dtype=jnp.float32)[0], nnx.Param) for at in ("tiny", path))
    jax.tree.map(np.testing.assert_array_equal, begun, ended)


def test_by_the_rule_of_the_small_world(runner, tmp_path):
    made = config("steps=2")
    path = loop.train(made, tmp_path / "run", MixedScore(runner, make_reward_model(made, tmp_path / "run")))
    line = lines_of(path)[0]
    assert line["judge/read"] > 0 and -1.1 <= line["reward"] <= 1


def test_rewards_within_their_source():
    scores, sources = np.array([1, 0, 1, 0, 0.5, 7, 9], np.float32), ["a", "a", "a", "a", "b", "c", "c"]
    valid = np.array([True, True, True, True, True, True, False])
    found = loop.normalised(scores, valid, sources)
    np.testing.assert_allclose(found, [1, -1, 1, -1, 0, 0, 0], atol=1e-6)
    assert found.dtype == np.float32 and not loop.normalised(scores, ~valid & False, sources).any()


def test_prompts_are_of_both_kinds_and_may_show_their_rubric():
    prompts = [prompt for update in range(8) for prompt in Prompts(config())(update)]
    by_source = {prompt.source: prompt for prompt in prompts}
    ruled, free = by_source["rubric"], by_source["preference"]
    assert ruled.extra["rubric"] and not free.extra["rubric"] and with_rubric(free) is free
    shown = with_rubric(ruled)
    assert ruled.extra["rubric"] in shown.conversation.turns[0].text and shown.history is ruled.conversation
    assert shown.conversation.turns[1:] == ruled.conversation.turns
    told = Conversation((system("Be kind."), human("Hello")))
    both = with_rubric(type(ruled)(told, "x", "s", "preference", {"rubric": ["Is kind", "Is short"]}))
    said = both.conversation.turns[0].text
    assert said.startswith("Be kind.\n\n") and said.endswith("Is kind\nIs short")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reward_model.judge=oracle", "reward_model.judge: expected one of checkpoint"),
        ("reward_model.judge=endpoint", "reward_model.at: expected a path or an address"),
        ("reward_model.scale=stars", "reward_model.scale: expected one of whole"),
        ("reward_model.references=mine", "reward_model.references: expected one of record"),
        ("rl.reference.rate=0", "rl.reference: expected every from 0"),
        ("rl.reference.every=-1", "rl.reference: expected every from 0"),
    ],
)
def test_what_cannot_be_is_refused(runner, tmp_path, change, message):
    made = config(change)
    with pytest.raises(ValueError, match=message):
        loop.train(made, tmp_path / "run", MixedScore(runner, make_reward_model(made, tmp_path)))


def test_a_run_against_an_address(runner, tmp_path):
    """A server that answers, refuses and babbles in turn: what has a verdict is learnt from. Killed after its rewards
    were there, the update is done again without asking for a verdict again that was had."""
    said = (("say", "Fine.\nVerdict: better"), ("say", "Fine.\nVerdict: worse"), 400, ("say", "Well, well."))
    server = Server(said * 500)
    made = config("steps=2", "reward_model.judge=endpoint", f"reward_model.at={server.url}", "reward_model.at_once=1")
    score = MixedScore(runner, make_reward_model(made, tmp_path / "run"))

    def dying(*asked):
        score(*asked)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(made, tmp_path / "run", dying)
    first, known = len(server.bodies), (tmp_path / "run/judge.jsonl").read_text().splitlines()
    assert first == len(known) > 0 and sum('"error"' in line for line in known) < first
    server.plan = [("say", "Verdict: better")] * 500
    path = loop.train(made, tmp_path / "run", MixedScore(runner, make_reward_model(made, tmp_path / "run")))
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    repeated = sum(text in asked[:first] for text in asked[first:])
    assert repeated == sum('"error"' in line for line in known)
    assert all(0 <= line["without_reward"] < 1 for line in lines_of(path))
