"""Two controllers of two devices each run what one of four does, and what fails on the first fails on both."""

import json

import numpy as np
import pytest

from tests import processes

PROGRAM = """
import functools, sys
from pathlib import Path
number, port, out, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4 // count)
from stepaudio_jax.parallel import distributed
if count > 1:
    distributed.start(coordinator=f"127.0.0.1:{port}", processes=count, process=number)
assert jax.device_count() == 4 and jax.process_count() == count
from stepaudio_jax.judges import EngineJudge, Question
from stepaudio_jax.rl import loop
from stepaudio_jax.rl.reward_model.build import judged_by_all, make_reward_model
from stepaudio_jax.rl.reward_model.scoring import MixedScore
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.text import Conversation, human
from stepaudio_jax.training import read_config

small = ("init=tiny", "steps=2", "rl.prompts=4", "rl.samples=2", "rl.rows=4", "rl.sound_rows=4", "rl.minibatches=1",
         "optim.warmup_steps=1", "checkpoints.save_every=1", "prompts.dialogues.max_events=1", "rl.max_new_tokens=64",
         "rl.baseline=critic", "rl.critic_minibatches=1", "critic_optim.warmup_steps=1", "mesh.fsdp=4",
         "reward_model.references=reference", "optim.learning_rate=1e-3")
config = read_config("configs/rlhf_tiny.py", [f"--config.{each}" for each in small])
scored = []
with RewardRunner() as runner:
    mixed = MixedScore(runner, make_reward_model(config, out))

    def dying(prompts, sampled):
        scored.append(len(prompts))
        if len(scored) == 2:
            raise RuntimeError("no more rewards")
        return mixed(prompts, sampled)

    if count > 1:
        try:
            loop.train(config, out, dying)
            raise AssertionError("it did not fail")
        except RuntimeError as error:
            assert "no more rewards" in str(error)
        assert scored == ([8, 8] if number == 0 else [])
    looks = lambda engine: {"eval_rows": float(engine.options.max_rows)}
    loop.train(config, out, mixed, evaluate=looks)

    config.reward_model.update({"judge": "checkpoint", "at": "tiny", "max_rows": 4, "max_new_tokens": 48})
    config.steps, config.optim.warmup_steps, config.rl.baseline, out = 1, 0, "rloo", out + "/judged"
    by_all = judged_by_all(config)
    assert by_all == (count > 1)
    model = make_reward_model(config, out)
    loop.train(config, out, MixedScore(runner, model, by_all=by_all))
    asked, again = model.judge.counters.asked, make_reward_model(config, out)
    assert asked > 0 and len(again.judge._known) == len(model.judge._known)  # both processes know the file

    question = Question(Conversation((human("Which of two tones is higher, the first or the second?"),)), 16)
    (said,) = EngineJudge(model.judge._judge._engine, "briefly", thinking=False)([question])
    assert said.text
    if number == 0:
        Path(out, "said").write_text(said.text)
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Also where the second update's scoring failed on the first process, and both went on from there."""
    for count in (1, 2):
        processes.run(PROGRAM, tmp_path / str(count), count, count=count, timeout=3600)
    one, two = ([json.loads(line) for line in (tmp_path / str(n) / "metrics.jsonl").open()] for n in (1, 2))
    one, two = ([line for line in lines if "loss" in line] for lines in (one, two))
    assert [line["step"] for line in two] == [1, 2] and len(one) == 2
    for a, b in zip(one, two, strict=True):
        assert a["reward"] == b["reward"] and a["think_tokens"] == b["think_tokens"]
        for name in ("loss", "critic/loss", "grad_norm", "entropy", "kl_to_old"):
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-5), name
    assert (tmp_path / "2/checkpoint/config.json").exists() and (tmp_path / "2/report.html").exists()
    assert not list((tmp_path / "2/rollouts").iterdir()) and np.isfinite(two[-1]["loss"])

    one, two = (tmp_path / str(n) / "judged" for n in (1, 2))  # a checkpoint that lies on both judges
    assert (one / "judge.jsonl").read_text() == (two / "judge.jsonl").read_text()
    assert (one / "said").read_text() == (two / "said").read_text()
