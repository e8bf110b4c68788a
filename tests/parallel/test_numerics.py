"""One train step and 16 decode steps are the same on every mesh as on one device."""

import functools
import json

import jax
import numpy as np
import optax
import pytest

from stepaudio_jax.models.lora import DECODER_MATRICES, MODULES, LoraConfig
from stepaudio_jax.parallel import make_mesh, mesh
from tests import processes
from tests.parallel import runs

MESHES = [
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"data": 2, "fsdp": 4},
]


@functools.cache
def single():
    return runs.train_step(make_mesh({}, jax.devices()[:1]))


def same_step(found, expected=None):
    (grads, metrics), (true_grads, true_metrics) = found, expected or single()
    for (key, ours), truth in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(true_grads), strict=True):
        assert np.linalg.norm(truth) > 0, key
        assert np.linalg.norm(ours - truth) <= 1e-5 * np.linalg.norm(truth) + 1e-7, key
    assert optax.tree.norm(jax.tree.map(np.subtract, grads, true_grads)) <= 2e-6 * optax.tree.norm(true_grads)
    for name, value in true_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_train_step(axes):
    same_step(runs.train_step(make_mesh(axes)))


@pytest.mark.parametrize(
    "options", [{"remat": "gate", "vocab_chunks": 4}, {"remat": "full", "vocab_chunks": 2}], ids=str
)
def test_what_is_computed_again_changes_nothing(options):
    same_step(runs.train_step(make_mesh({"fsdp": 2, "context": 2, "tensor": 2}), **options))


def test_microbatches():
    one, many = (
        runs.train_step(made, microbatches=2) for made in (make_mesh({}, jax.devices()[:1]), make_mesh(MESHES[2]))
    )
    same_step(many, one)


ADAPTERS = LoraConfig(rank=4, targets=("query", "mlp_down", "linear2", *DECODER_MATRICES), modules=MODULES)


def test_adapters():
    """Beside matrices split along their columns, along their rows, and stored in parts along either."""
    meshes = make_mesh({}, jax.devices()[:1]), make_mesh(MESHES[2])
    one, many = (runs.train_step(made, lora=ADAPTERS) for made in meshes)
    same_step(many, one)


def test_two_slices():
    """Devices 0 to 3 and 4 to 7 stand for slices: data goes from one to the other, fsdp stays within."""
    made = make_mesh({"data": 2, "fsdp": -1}, slices=2)
    assert [[d.id for d in row.flat] for row in made.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    same_step(runs.train_step(made))


def test_weights_gathered_in_two_phases(monkeypatch):
    """As over a TPU's torus."""
    monkeypatch.setattr(mesh, "torus_side", lambda _: 2)
    same_step(runs.train_step(make_mesh({"fsdp": 8})))


@functools.cache
def single_replies():
    return runs.replies(make_mesh({}, jax.devices()[:1]), "serve")


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_16_decode_steps(axes):
    """Prompts with audio, prefilled and decoded; the trainer's layout of the weights can generate as well."""
    for strategy in ("serve", "train") if axes.get("context") else ("serve",):
        same_replies(runs.replies(make_mesh(axes), strategy))


def test_integers_over_a_mesh():
    """Quantised weights and cache, heads and rows split: the tokens of a single device."""
    quantised = {"weights": "int8", "kv_cache": "int8"}
    whole, split = (
        runs.replies(make_mesh(axes, jax.devices()[:count]), "serve", **quantised)
        for axes, count in (({}, 1), ({"data": 2, "tensor": 2}, 4))
    )
    assert [tokens for tokens, _ in split] == [tokens for tokens, _ in whole]
    for (_, ours), (_, truth) in zip(split, whole, strict=True):
        np.testing.assert_allclose(ours, truth, atol=2e-3)


def same_replies(found):
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in single_replies()]
    for (_, ours), (_, truth) in zip(found, single_replies(), strict=True):
        np.testing.assert_allclose(ours, truth, atol=1e-5)


PROGRAM = """
import sys
number, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
from stepaudio_jax.parallel import make_mesh, distributed
distributed.start(coordinator=f"127.0.0.1:{port}", processes=2, process=number)
assert jax.device_count() == 4 and jax.process_count() == 2
import numpy as np
from tests.parallel import runs
mesh = make_mesh({"data": 2, "fsdp": 2}, slices=2)
assert [{d.process_index for d in row.flat} for row in mesh.devices] == [{0}, {1}]
grads, metrics = runs.train_step(mesh)
metrics["replies"] = runs.replies(mesh, "serve")
if number == 0:
    import json
    leaves = {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(grads)}
    np.savez(out, metrics=json.dumps(metrics), **leaves)
"""


def test_two_processes(tmp_path):
    """Two controllers of two devices each, over gloo, every process a slice."""
    processes.run(PROGRAM, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        truth, _ = single()
        keys = [jax.tree_util.keystr(key) for key, _ in jax.tree_util.tree_leaves_with_path(truth)]
        grads = jax.tree.unflatten(jax.tree.structure(truth), [file[key] for key in keys])
        metrics = json.loads(str(file["metrics"]))
        same_step((grads, metrics))
    same_replies([(tuple(tokens), log_probs) for tokens, log_probs in metrics["replies"]])
