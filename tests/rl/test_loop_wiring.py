"""What the trainer makes of rewards before an update learns from them, and which policy the KL is to.

Replies are given here, not sampled, and the update is replaced by one that remembers what it was to learn from.
"""

import json
import statistics

import jax
import numpy as np
import pytest

from stepaudio_jax.rl import loop
from stepaudio_jax.rl.rollout import Sampled, pack_rows
from stepaudio_jax.training import read_config

SMALL = ("init=tiny", "steps=1", "rl.prompts=4", "rl.samples=2", "rl.rows=8", "rl.sound_rows=8", "mesh.fsdp=1",
         "optim.warmup_steps=0", "critic_optim.warmup_steps=0", "rl.baseline=rloo", "rl.max_new_tokens=40",
         "rl.share_prompts=False", "scan_layers=True")  # fmt: skip
NOTHING = {"reward": 0.0, "loss": 0.0}


class Trainer:
    """Runs `loop.train` with given replies; `learnt` has the rollout of each update."""

    def __init__(self, monkeypatch, tmp_path):
        self.workdir, self.learnt, self.asked, self.on_update = tmp_path / "run", [], [], lambda *given: None
        monkeypatch.setattr(loop, "rollout", self._rollout)
        monkeypatch.setattr(loop.ppo, "update", self._update)
        self.length = lambda prompt, sample: 3

    def _rollout(self, engine, prompts, samples, *args, **kwargs):
        """Every second reply speaks to the judge."""
        pairs = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
        return [self._reply(prompt, sample, self.length(prompt, sample)) for prompt, sample in pairs]

    def _reply(self, prompt, sample, tokens):
        answer = "Verdict: better" if sample % 2 else "Yes"
        return Sampled(prompt, sample, (40,) * tokens, (-1.0,) * tokens, "I hear:", answer, True, False)

    def _update(self, whole, options, layout, policy, critic, reference):
        self.learnt.append(whole)
        self.on_update(whole, layout, policy, reference)
        return dict(NOTHING)

    def run(self, *changes, scores=lambda number: float(number)):
        """Scores by the number of the reply in its rollout."""

        def score(prompts, sampled):
            self.asked = list(prompts)
            values = np.array([scores(number) for number in range(len(sampled))], np.float32)
            return values, np.ones(len(sampled), bool), {}

        config = read_config("configs/rlvr_tiny.py", [f"--config.{each}" for each in (*SMALL, *changes)])
        loop.train(config, self.workdir, score)
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        return self.learnt[-1].scores, [line for line in lines if "loss" in line]


@pytest.fixture
def trainer(monkeypatch, tmp_path, one_device):
    return Trainer(monkeypatch, tmp_path)


def test_rewards_are_learnt_as_they_are(trainer):
    scores, (line,) = trainer.run(scores=lambda number: [0.8, 0.2][number % 2])
    np.testing.assert_allclose(scores, [0.8, 0.2] * 4, rtol=1e-6)
    assert line["reward"] == pytest.approx(0.5) and line["guards/verdict"] == 0.5


def test_penalties_are_taken_off_the_reward(trainer):
    """Of replies to the judge 0.25; of 35 tokens, in the last 20 before the limit of 40, 0.4 · 15 / 20 = 0.3."""
    trainer.length = lambda prompt, sample: 35 if prompt == 0 else 20
    changes = ("rl.guards.verdict=0.25", "rl.overlong.weight=0.4", "rl.overlong.buffer=20")
    scores, _ = trainer.run(*changes, scores=lambda number: 1.0)
    np.testing.assert_allclose(scores, [0.7, 0.45, *[1.0, 0.75] * 3], rtol=1e-6)


def test_rewards_are_normalised_within_their_source(trainer):
    changes = ("rl.prompts=8", "rl.normalise=True", "prompts.miniature.kinds=('direction','timbre')")
    scores, (line,) = trainer.run(*changes)
    by_source = {}
    for number, prompt in enumerate(trainer.asked):
        by_source.setdefault(prompt.source, []).append(number)
    assert len(by_source) == 2
    for numbers in by_source.values():
        mean, spread = statistics.mean(numbers), statistics.pstdev(numbers)
        np.testing.assert_allclose(scores[numbers], [(n - mean) / spread for n in numbers], rtol=1e-5)
    assert line["reward"] == pytest.approx(statistics.mean(range(16)))  # what is told is what was given


@pytest.mark.parametrize("every", [0, 2])
def test_the_reference_stays_where_the_policy_began(trainer, every):
    """It reads what the policy read before its first update; with `every` it becomes the policy after two."""
    read = []

    def move(whole, layout, policy, reference):
        batches = [packed.batch for packed in pack_rows(whole.examples, layout)]
        own, held = policy.read(batches)[0]["log_probs"], reference(batches)[0]["log_probs"]
        read.append((own, held))
        policy.state = policy.state._replace(params=jax.tree.map(lambda x: 1.05 * x, policy.state.params))

    trainer.on_update = move
    # The same prompts every time: one record.
    once = ("prompts.miniature.records=1", "rl.prompts=1", "prompts.miniature.max_events=1")
    trainer.run("steps=3", "rl.kl.weight=0.1", f"rl.reference.every={every}", *once)
    (own, held), (second, second_held), (third, third_held) = read
    np.testing.assert_allclose(held, own, atol=1e-5)
    np.testing.assert_allclose(second_held, own, atol=1e-5)
    assert np.abs(second - own).max() > 1e-2 and np.abs(third - second).max() > 1e-2
    np.testing.assert_allclose(third_held, third if every else own, atol=1e-5)


def test_without_a_kl_nothing_is_held_to_a_reference(trainer):
    references = []
    trainer.on_update = lambda whole, layout, policy, reference: references.append(reference)
    trainer.run()
    assert references == [None]
