"""A run over two processes is the run of one: the trainer, its logs and its checkpoints under several controllers."""

import json

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stepaudio_jax import checkpoints, training
from stepaudio_jax.training import loop
from tests import processes
from tests.training.test_training import small_run_config

PROGRAM = """
import sys
number, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
from stepaudio_jax.parallel import distributed
distributed.start(coordinator=f"127.0.0.1:{port}", processes=2, process=number)
from stepaudio_jax import training
from tests.training.test_processes import config, look
training.train(config(), workdir, evaluate=look)
"""


def config():
    config = small_run_config()
    config.steps, config.save_dtype = 2, "float32"
    return config


def look(model, tokenizer):
    """Reads every parameter, as an evaluation would."""
    return {"norm": float(optax.tree.norm(nnx.state(model, nnx.Param)))}


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    processes.run(PROGRAM, tmp_path / "two", timeout=400)
    make_mesh = loop.make_mesh
    monkeypatch.setattr(loop, "make_mesh", lambda axes: make_mesh(axes, jax.devices()[:1]))
    training.train(config(), tmp_path / "one", evaluate=look)

    one, two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 2]
    for ours, truth in zip(two, one, strict=True):
        for name in ("loss", "norm"):
            assert abs(ours.get(name, 0) - truth.get(name, 0)) <= 1e-5 * abs(truth.get(name, 1)), name
    a, b = (
        nnx.to_pure_dict(nnx.state(checkpoints.load(tmp_path / run / "checkpoint")[0], nnx.Param))
        for run in ("one", "two")
    )
    assert optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) <= 1e-5 * optax.tree.norm(a)
