"""The guard: what is not applied, what stops a run, what is held against what."""

import statistics

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from stepaudio_jax import training
from stepaudio_jax.training.guard import DivergenceError, Guard, guarded
from stepaudio_jax.training.step import TrainState
from tests.training import runs


def config(**changes):
    values = {"action": "stop", "spike": 3.0, "window": 4, "most_skips": 2}
    return ml_collections.ConfigDict(values | changes)


def values(loss, skipped=False):
    return {"loss": loss, "grad_norm": 1.0, "skipped": float(skipped), "loss/cot": 7.25}


OPTIMIZER = optax.adam(0.1)


def quadratic(state: TrainState, batch):
    """A step on loss = batch · |params|², which is not finite where the batch is not."""
    loss, grads = jax.value_and_grad(lambda params: batch * (params**2).sum())(state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return TrainState(optax.apply_updates(state.params, updates), {}, opt_state, state.step + 1), metrics


@pytest.mark.parametrize("batch", [1.0, np.nan, np.inf, -np.inf, 99.0])
def test_an_update_is_applied_or_nothing_changes(batch):
    skipped = batch != 1.0
    params = jnp.array([1.0, -2.0])
    step = jax.jit(guarded(quadratic), donate_argnums=0)
    state, _ = step(TrainState(params, {}, OPTIMIZER.init(params), jnp.zeros((), jnp.int32)), 1.0, np.inf)
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, batch, 100.0)
    assert bool(metrics["skipped"]) == skipped and int(after.step) == 2
    plain, _ = quadratic(before, batch)
    expected = before._replace(step=np.int32(2)) if skipped else plain
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_the_limit_is_a_multiple_of_the_median_of_the_losses_but_the_last():
    guard, losses = Guard(config()), [9.0, 2.0, 4.0, 6.0, 3.0, 8.0, 5.0]
    for step, loss in enumerate(losses, 1):
        known = losses[: max(step - 2, 0)][-4:]
        assert guard.limit(step) == (3.0 * statistics.median(known) if len(known) == 4 else np.inf)
        assert guard.check(step, values(loss), {}) is None
    again = Guard(config(), guard.state())
    assert again.limit(8) == guard.limit(8) == 3.0 * statistics.median([6.0, 3.0, 8.0, 4.0])
    low = Guard(config())
    for step in range(1, 9):
        low.check(step, values(0.01), {})
    assert low.limit(9) == 3.0, "of losses below 1 nat, ratios mean little"


def test_it_stops_or_counts():
    with pytest.raises(DivergenceError, match=r"step 5: the loss is nan, loss/cot 7.25, .*batch {'batch': 4}"):
        Guard(config()).check(5, values(np.nan, skipped=True), {"batch": 4})
    guard = Guard(config(action="skip"))
    for step in (1, 3, 20, 21):
        assert f"step {step}: " in guard.check(step, values(50.0, skipped=True), {})
    with pytest.raises(DivergenceError, match=r"3 of 4 steps, more than guard.most_skips 2"):
        Guard(config(action="skip"), guard.state()).check(22, values(50.0, skipped=True), {})
    with pytest.raises(ValueError, match=r'guard.action: expected "stop" or "skip", found "hope"'):
        Guard(config(action="hope"))


@pytest.mark.usefixtures("one_device")
def test_a_run_stops_before_it_is_spoilt_or_goes_on_without(tmp_path):
    """With a limit of half the usual loss, every step is a spike once three losses are known."""
    spikes = {"guard.window": 3, "guard.spike": 0.5}
    with pytest.raises(DivergenceError, match=r"step 5: the loss is .*median of 3 steps.*'batch': 4.*action=skip"):
        training.train(runs.config(**spikes), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("0*")] == ["000004"]
    assert not (tmp_path / "checkpoint").exists()
    assert "step 5: the loss is" in (tmp_path / "report.html").read_text()
    before = runs.parameters(tmp_path / "checkpoints" / "000004")

    allow = ["guard.action", "guard.most_skips"]
    few = runs.config(**spikes, **{"guard.action": "skip", "guard.most_skips": 2})
    with pytest.raises(DivergenceError, match=r"step 7: .*3 of 3 steps"):
        training.train(few, tmp_path, allow_change=allow)
    many = runs.config(**spikes, **{"guard.action": "skip", "guard.most_skips": 99})
    path = training.train(many, tmp_path, allow_change=allow)
    skips = [line["step"] for line in runs.lines(tmp_path, "event") if "skipped" in line["event"]]
    assert len(skips) == 8
    jax.tree.map(np.testing.assert_array_equal, runs.parameters(path), before)


@pytest.mark.usefixtures("one_device")
def test_a_rate_that_is_far_too_high_stops_the_run(tmp_path):
    config = runs.config()
    config.optim.update({"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30})
    with pytest.raises(DivergenceError, match=r"Lower optim.learning_rate"):
        training.train(config, tmp_path)
    assert not (tmp_path / "checkpoint").exists()
