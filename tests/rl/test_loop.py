"""The RL trainer from a config, on the tiny model: what it writes, and that an interruption changes nothing."""

import functools
import itertools
import json

import pytest

from stepaudio_jax import checkpoints
from stepaudio_jax.rl import loop
from stepaudio_jax.rl.scoring import score
from stepaudio_jax.training import read_config
from stepaudio_jax.training.configs import copy_of
from tests import small

SMALL = ("steps=3", "rl.prompts=2", "rl.samples=3", "rl.rows=4", "rl.row_tokens=192", "rl.sound_rows=4",
         "rl.max_new_tokens=48", "rl.engine.max_rows=8", "rl.critic_minibatches=1", "optim.warmup_steps=1",
         "critic_optim.warmup_steps=1", "checkpoints.save_every=1", "prompts.miniature.max_events=2",
         "scan_layers=True")  # fmt: skip

HELD = ("rl.kl.weight=0.1", "rl.reference.every=1", "rl.reference.rate=0.5",
        "rl.temperature=1.8", "optim.warmup_steps=0")  # fmt: skip


def config(*more: str):
    return read_config("configs/rlvr_tiny.py", [f"--config.{each}" for each in ("init=tiny", *SMALL, *more)])


def dying_at(call, runner):
    """Scores until it is called for this time."""
    calls = itertools.count(1)

    def dying(prompts, sampled):
        if next(calls) == call:
            raise KeyboardInterrupt
        return score(runner, prompts, sampled)

    return dying


@pytest.fixture(scope="module")
def whole(runner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl") / "run"
    with small.devices(1):
        return loop.train(config(*HELD), folder, functools.partial(score, runner), evaluate=lambda engine: {"x": 1.0})


def test_what_a_run_writes(whole):
    lines = [json.loads(line) for line in (whole.parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    wanted = {"reward", "think_tokens", "entropy", "kl_to_old", "clip_fraction", "truncated",
              "critic/loss", "rollout_tokens_per_second", "seconds/rollout", "sampler/mean_difference"}  # fmt: skip
    assert wanted <= set(steps[0])
    assert 0 < steps[0]["reward"] <= 1 and steps[0]["sampler/mean_difference"] < 1e-3
    assert not list((whole.parent / "rollouts").iterdir())
    assert (whole / "config.json").exists() and checkpoints.read_config(whole)


def test_killed_in_an_update_it_ends_with_the_same_bits(whole, runner, one_device, tmp_path):
    """It dies while it scores the second rollout, whose journal stays."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(*HELD), folder, dying_at(2, runner))
    assert [path.name for path in (folder / "rollouts").iterdir()] == ["000001.jsonl"]
    path = loop.train(config(*HELD), folder, functools.partial(score, runner))
    first, second = (json.loads((each.parent / "checkpoints/000003/run.json").read_text()) for each in (whole, path))
    assert first["checksums"] == second["checksums"]


def test_critic_and_reference_on_devices_of_their_own(whole, runner, tmp_path):
    """Two and two of four: the same updates as on one, also where one was done again."""
    made = config(*HELD, "steps=2", "mesh.fsdp=2", "rl.critic_mesh.fsdp=2")
    with small.devices(4):
        with pytest.raises(KeyboardInterrupt):
            loop.train(made, tmp_path / "run", dying_at(2, runner))
        path = loop.train(made, tmp_path / "run", functools.partial(score, runner))
    ours, theirs = ([json.loads(line) for line in (each.parent / "metrics.jsonl").open()] for each in (path, whole))
    ours, theirs = ([line for line in lines if "loss" in line] for lines in (ours, theirs))
    assert ours[-1]["kl_to_reference"] > 1e-5
    for a, b in zip(ours, theirs[:2], strict=True):
        for name in ("reward", "critic/loss", "grad_norm", "entropy", "kl_to_reference"):
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-5), name


def test_adapters_are_a_policy_and_the_kl_adapts(runner, one_device, tmp_path):
    """LoRA beside frozen weights, held to the start by a KL whose weight goes down where the KL is under its target;
    ended after the second update it goes on with the weight it had."""
    made = copy_of(config("rl.kl.weight=0.1", "rl.kl.target=0.5", "rl.baseline=grpo"))
    made.trainable, made.lora = ("lora",), read_config("configs/lora_tiny.py").lora
    with pytest.raises(KeyboardInterrupt):
        loop.train(made, tmp_path / "run", dying_at(3, runner))
    path = loop.train(made, tmp_path / "run", functools.partial(score, runner))
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    scales = [line["kl_scale"] for line in lines if "kl_scale" in line]
    assert scales == pytest.approx([1.0, 0.98, 0.98**2])  # at most 2 % an update, in the KL's direction
    first = next(line for line in lines if "loss" in line)
    assert first["kl_to_reference"] == pytest.approx(0, abs=1e-6) and (path / "lora.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("init=", "config.init: a policy to begin with"),
        ("rl.baseline=best", "rl.baseline: expected one of critic"),
        ("rl.row_tokens=16", "there is room for 16"),
        ("rl.clip.low=2.0", "clip: expected 0 to 1 below"),
        ("rl.critic_mesh.fsdp=16", "rl.critic_mesh: expected a part of the 8 devices, found 16"),
        ("rl.critic_mesh.fsdp=2", "rl.critic_mesh: expected rows and sound in 6 and 6 shares"),
        ("rl.kl.target=0.1", "rl.kl.target: expected above 0, beside a weight or reward"),
    ],
)
def test_what_cannot_be_is_refused(runner, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        made = config("rl.rows=8", "rl.sound_rows=8", change)
        loop.train(made, tmp_path / "run", functools.partial(score, runner))
