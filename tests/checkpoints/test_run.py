"""Checkpoints of a run: exact on any mesh, kept by rule, never half-written, never damaged without notice."""

import json
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from checkpoints_convert.to_hf import to_hf
from checkpoints_convert.verify import compare
from stepaudio_jax import checkpoints, training
from stepaudio_jax.checkpoints import CheckpointError, Retention, RunCheckpoints
from stepaudio_jax.checkpoints.checksums import checksums
from stepaudio_jax.parallel import ShardingRules, make_mesh
from stepaudio_jax.training.step import TrainState
from tests import small

MESHES = {"one": ({}, 1), "two": ({"fsdp": 2}, 2), "eight": ({"data": 2, "fsdp": 2, "tensor": 2}, 8)}


def state_on(mesh: str, trainable=("adaptor", "decoder")) -> tuple[TrainState, TrainState]:
    """A train state of random numbers, and where its arrays lie."""
    axes, count = MESHES[mesh]
    rules = ShardingRules(make_mesh(axes, jax.devices()[:count]))
    model, optimizer = small.model(), optax.adamw(1e-3)
    _, state = training.init_state(model, optimizer, trainable=trainable, frozen_dtype=jnp.bfloat16)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), state)
    shardings = rules.shardings(training.state_specs(rules, model, optimizer, state))
    return jax.device_put(state, shardings), shardings


def abstract(state, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def run_in(folder, **retention) -> RunCheckpoints:
    text = small.tokenizer().backend.to_str()
    return RunCheckpoints(folder, small.model(), text, generation={}, retention=Retention(**retention))


def save(run, step, state, **about):
    if not (run.folder / "frozen").exists():
        run.save_frozen(state.frozen)
    run.save(step, state.params, (state.opt_state, state.step), frozen=True, about=about, config="{}")


def read(run, state, shardings):
    wanted = abstract(state, shardings)
    return run.restore(wanted.params, wanted.frozen, (wanted.opt_state, wanted.step))


def equal(restored, state):
    found = (restored.params, restored.frozen, restored.train)
    expected = (state.params, state.frozen, (state.opt_state, state.step))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 3 and 7 of two devices, the second also with other values."""
    folder, (state, _) = tmp_path_factory.mktemp("run") / "checkpoints", state_on("two")
    run = run_in(folder)
    save(run, 3, state, batch=30)
    save(run, 7, state._replace(params=jax.tree.map(lambda x: x + 1, state.params)), batch=70)
    run.wait()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_it_comes_back_on_another_mesh_and_back_again(tmp_path):
    """Eight devices to two to eight: every bit, where the rules put it."""
    state, shardings = state_on("eight")
    for mesh in ("eight", "two", "eight"):
        run = run_in(tmp_path / mesh)
        save(run, 1, state, source={"epoch": 0, "global_row": 5})
        run.wait()
        other, shardings = state_on({"eight": "two", "two": "eight"}[mesh])
        restored = read(run_in(tmp_path / mesh), other, shardings)
        assert restored.about == {"source": {"epoch": 0, "global_row": 5}} and not restored.damaged
        equal(restored, state)
        where = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), restored.params, shardings.params)
        assert all(jax.tree.leaves(where))
        state = TrainState(restored.params, restored.frozen, *restored.train)


def test_what_is_trained_on_is_not_what_is_written(tmp_path):
    """The next step may overwrite the arrays in place while they are still being written."""
    state, shardings = state_on("two")
    before = jax.tree.map(np.array, state)
    run = run_in(tmp_path)
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    save(run, 1, state)
    for _ in range(5):
        state = state._replace(params=advance(state.params), opt_state=advance(state.opt_state))
    run.wait()
    equal(read(run, state, shardings), before)


def test_a_step_is_a_checkpoint_like_any_other(saved, tmp_path):
    """Read with its frozen parameters, and converted as it is."""
    state, _ = state_on("one")
    model, tokenizer = checkpoints.load(saved / "000003")
    assert tokenizer.vocab_size == small.tokenizer().vocab_size
    found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, found, state.params | state.frozen)
    to_hf(saved / "000003", tmp_path / "hf")
    assert compare(str(saved / "000003"), str(tmp_path / "hf")) == []
    alone = shutil.copytree(saved / "000003", tmp_path / "alone" / "000003")
    with pytest.raises(CheckpointError, match="frozen: no such folder"):
        checkpoints.load(alone)


def damage_nothing_but_one_bit(step):
    file = max((step / "params" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(step):
    for file in (step / "train" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def exchange_two_arrays(step):
    """Whole files, whose arrays are another checkpoint's: only the checksums of values can tell."""
    run = json.loads((step / "run.json").read_text())
    sums = run["checksums"]["params"]
    first, second = list(sums)[:2]
    sums[first], sums[second] = sums[second], sums[first]
    (step / "run.json").write_text(json.dumps(run))


DAMAGES = {
    "other values": (exchange_two_arrays, "damaged: .* does not have the checksum it was saved with"),
    "a bit": (damage_nothing_but_one_bit, "checksum|cannot be read"),
    "truncated": (truncate, "cannot be read"),
    "no arrays": (lambda step: shutil.rmtree(step / "params"), "cannot be read"),
    "no json": (lambda step: (step / "run.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_read(damage, folder):
    (harm, message), (state, shardings) = DAMAGES[damage], state_on("two")
    harm(folder / "000007")
    restored = read(run_in(folder), state, shardings)
    assert (restored.step, restored.about) == (3, {"batch": 30})
    equal(restored, state)
    (said,) = restored.damaged
    assert "000007" in said and pytest.importorskip("re").search(message, said) and "\n" not in said
    assert run_in(folder).steps() == [3]
    harm(folder / "000003")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        read(run_in(folder), state, shardings)


def test_what_was_half_written_is_no_checkpoint(folder):
    (folder / "000007" / "run.json").unlink()  # as object stores have it, where nothing is renamed
    shutil.copytree(folder / "000003", folder / "000009.orbax-checkpoint-tmp")
    run = run_in(folder)
    assert run.steps() == [3]
    run.clear()
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "frozen", "frozen.json"]


def test_a_disk_that_is_full(folder, monkeypatch):
    """The error names the folder and the newest whole checkpoint, and does not hide in the background."""
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    state, _ = state_on("two")
    run = run_in(folder)
    monkeypatch.setattr("stepaudio_jax.checkpoints.run._StepHandler.finalize", full)
    save(run, 9, state)
    with pytest.raises(CheckpointError, match=r"No space left on device.*newest whole one is 000007"):
        run.wait()
    assert run.steps() == [3, 7]


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    state, _ = state_on("one")
    run = run_in(tmp_path, newest=1, best="accuracy")
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.4)):
        save(run, step, state)
        run.note(step, {"accuracy": accuracy})
    assert run.steps() == [2, 4] and run.scores(2) == {"accuracy": 0.9}
    with pytest.raises(ValueError, match="newest: expected at least 1"):
        Retention(newest=0)


@hypothesis.given(
    st.dictionaries(st.integers(1, 60), st.floats(0, 1), max_size=12), st.integers(1, 4), st.integers(0, 10)
)
def test_what_is_kept(scores, newest, every):
    rated = {step: {"loss": value} for step, value in scores.items()}
    kept = Retention(newest, every, "-loss").kept(rated)
    assert kept <= set(scores) and set(sorted(scores)[-newest:]) <= kept
    for step in set(scores) - kept:
        assert not (every and step % every == 0)
        assert any(scores[other] <= scores[step] for other in kept)


def test_checksums_see_a_bit_an_exchange_and_no_mesh():
    def placed(array, mesh, *spec):
        return jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))

    one, eight = make_mesh({}, jax.devices()[:1]), make_mesh({"fsdp": -1})
    values = np.random.default_rng(0).standard_normal((16, 5)).astype(np.float32)
    bits, places = values.view(np.uint32).astype(object).ravel(), range(values.size)
    expected = sum(int(b) * (2 * i + 1) for b, i in zip(bits, places, strict=True)) % 2**32
    assert checksums({"x": placed(values, one)}) == {"x": expected}
    assert checksums({"x": placed(values, eight, "fsdp")}) == {"x": expected}
    for other in (values[::-1].copy(), np.nextafter(values, 9, where=values == values[3, 3], out=values.copy())):
        assert checksums({"x": placed(other, one)}) != {"x": expected}
    half = placed(values.astype(jnp.bfloat16), one)
    assert json.dumps(checksums({"a": {"b": half}})).startswith('{"a.b": ')
