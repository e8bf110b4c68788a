"""From a config to what a run leaves: when it logs, evaluates and saves, which checkpoints stay, what is exported.

Of the real trainer, but its step, which would take most of the time to compile: it adds 1 to every parameter.
"""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from stepaudio_jax import checkpoints, training
from stepaudio_jax.parallel import Program
from stepaudio_jax.training import loop
from tests import small
from tests.training import runs


class Instant(Program):
    """A program whose step adds 1 to what is trained."""

    def jit(self) -> Any:
        def step(state, batch, limit):
            params = jax.tree.map(lambda leaf: leaf + 1, state.params)
            filled = int((batch.segment_ids > 0).sum())
            metrics = {"loss": 1.0, "accuracy": 0.5, "grad_norm": 2.0, "tokens": 3, "filled": filled, "skipped": False}
            return state._replace(params=params, step=state.step + 1), metrics

        return step


@pytest.fixture(autouse=True)
def instant(monkeypatch, one_device):
    """Runs on one device whose steps take no time, without their report."""

    def prepare(config, mesh):
        stage = make(config, mesh)
        return dataclasses.replace(stage, program=Instant(**vars(stage.program)))

    make = loop.prepare
    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(loop.report, "write", lambda *_: None)


def test_a_run_does_what_its_config_says(tmp_path):
    config = runs.config(steps=4, log_every=3, eval_every=4, save_dtype="bfloat16")
    config.checkpoints.update({"save_every": 1, "newest": 3})
    config.generation.max_new_tokens = 7
    config.optim.update({"learning_rate": 8e-3, "end_learning_rate": 2e-3, "warmup_steps": 1, "schedule": "cosine"})
    path = training.train(config, tmp_path, evaluate=lambda model, tokenizer: {"mark": 0.25})
    lines = runs.lines(tmp_path)
    assert [line["step"] for line in lines] == [3, 4]
    rates = [2e-3 + 6e-3 * (1 + math.cos(math.pi * (count - 1) / 3)) / 2 for count in (2, 3)]  # before those steps
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates, rel=1e-5)
    assert all(0 < line["padding"] < 1 for line in lines)
    assert [(line["step"], line["mark"]) for line in runs.lines(tmp_path, "mark")] == [(4, 0.25)]
    saved = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("0*"))
    assert saved == ["000002", "000003", "000004"]
    assert json.loads((path / "generation_config.json").read_text())["max_new_tokens"] == 7
    model, _ = checkpoints.load(path)
    assert model.decoder.embed_tokens[...].dtype == jnp.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 8e-3


def test_adapters_and_a_module_trained_beside_them_are_exported(tmp_path):
    """As the config describes them, beside the base it names, whose other weights stay as they were."""
    made, text = small.model(max_position_embeddings=1024), small.tokenizer().backend.to_str()
    checkpoints.save(tmp_path / "base", made, text)
    config = runs.config(steps=1, init=str(tmp_path / "base"), trainable=("adaptor", "lora"))
    config.lora = {"rank": 3, "alpha": 7.5, "targets": ("q_proj",), "modules": ("decoder",), "rslora": False}
    config.optim.update({"warmup_steps": 0, "learning_rate": 1e-2, "weight_decay": 0.5})
    path = training.train(config, tmp_path / "run")
    model, _, about = checkpoints.load_adapters(path)
    assert about.modules == ("adaptor",) and about.base == str(tmp_path / "base")
    assert (about.lora.rank, about.lora.alpha, about.lora.targets, about.lora.rslora) == (3, 7.5, ("q_proj",), False)
    before, after = (flatten_dict(nnx.to_pure_dict(nnx.state(m, nnx.Param))) for m in (made, model))
    moved = {path[0] for path in before if np.any(before[path] != after[path])}
    assert moved == {"adaptor"} and np.any(model.decoder.layers.q_proj.lora.b[...])
