"""The optimizer against Optax's own AdamW, schedules and decay against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from stepaudio_jax import training
from stepaudio_jax.training.optimizer import check_groups, make_schedule

STEPS = 100


def optim(**changes):
    config = tiny.get_config().optim
    with config.unlocked():
        config.update(changes)
    return config


def numbers(seed=0):
    """A tree with the names of a model's parameters."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    lora = {"a": array(2, 3, 1), "b": array(2, 1, 4)}
    layer = {"q_proj": {"kernel": array(2, 3, 4), "bias": array(2, 4), "lora": lora}}
    return {
        "adaptor": {"linear1": {"kernel": array(3, 3), "bias": array(3)}},
        "decoder": {"embed_tokens": array(5, 3), "layers": layer, "norm": {"scale": array(3)}},
    }


def run(optimizer, steps=4):
    params, state = numbers(), None
    state = optimizer.init(params)
    for seed in range(1, steps + 1):
        updates, state = optimizer.update(numbers(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


def rate_at(name, step, *, peak, end, warmup, decay):
    """The schedules' formulas, without Optax."""
    if step < warmup:
        return peak * step / warmup
    if name == "cosine":
        return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup))) / 2
    if name == "linear":
        return peak + (end - peak) * (step - warmup) / (STEPS - warmup)
    if name == "wsd" and step > STEPS - decay:
        return peak + (end - peak) * (step - (STEPS - decay)) / decay
    return peak


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_schedules(name, warmup):
    values = {"peak": 3e-4, "end": 2e-5, "warmup": warmup, "decay": 25}
    config = optim(schedule=name, learning_rate=3e-4, end_learning_rate=2e-5, warmup_steps=warmup, decay_steps=25)
    schedule = jax.jit(make_schedule(config, STEPS))
    for step in range(STEPS + 1):
        assert float(schedule(step)) == pytest.approx(rate_at(name, step, **values), rel=1e-5, abs=1e-12), step


def test_without_groups_it_is_optax_adamw():
    config = optim(learning_rate=1e-2, warmup_steps=1, weight_decay=0.3, clip_norm=2.0)
    matrices = jax.tree_util.tree_map_with_path(lambda key, _: key[-1].key not in ("scale", "bias"), numbers())
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 1, STEPS, config.end_learning_rate)
    theirs = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=0.3, mask=matrices),
    )
    ours = training.make_optimizer(config, STEPS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), run(ours), run(theirs))


def test_decay_is_decoupled():
    """One step, in closed form: θ − rate · (sign(g) + decay · θ), for Adam's first step is the gradient's sign. The
    gradient's size, which clipping changes, changes nothing; a coupled decay would vanish in it."""
    config = optim(learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5, clip_norm=0.1)
    params, gradients = numbers(), numbers(1)
    optimizer = training.make_optimizer(config, STEPS)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    table, gradient = params["decoder"]["embed_tokens"], gradients["decoder"]["embed_tokens"]
    truth = -0.1 * (np.sign(gradient) + 0.5 * np.asarray(table))
    np.testing.assert_allclose(updates["decoder"]["embed_tokens"], truth, atol=2e-4)
    bias = updates["adaptor"]["linear1"]["bias"]
    np.testing.assert_allclose(bias, -0.1 * np.sign(gradients["adaptor"]["linear1"]["bias"]), atol=2e-4)


def test_groups_have_rates_and_decay_of_their_own():
    """Each part moves as it would if the whole optimizer were its own; the longest path decides."""
    common = {"learning_rate": 1e-3, "warmup_steps": 2, "schedule": "linear", "clip_norm": 1e9, "weight_decay": 0.1}
    groups = {
        "adaptor": {"learning_rate": 1e-2, "end_learning_rate": 1e-3},
        "decoder/layers": {"weight_decay": 0.7},
        "decoder/layers/q_proj/bias": {"learning_rate": 5e-2},
    }
    found = run(training.make_optimizer(optim(**common, groups=groups), STEPS))

    def alone(**changes):
        return run(training.make_optimizer(optim(**(common | changes)), STEPS))

    plain, layers = alone(), alone(weight_decay=0.7)
    truths = [
        (found["adaptor"], alone(**groups["adaptor"])["adaptor"]),
        (found["decoder"]["embed_tokens"], plain["decoder"]["embed_tokens"]),
        (found["decoder"]["norm"], plain["decoder"]["norm"]),
        (found["decoder"]["layers"]["q_proj"]["kernel"], layers["decoder"]["layers"]["q_proj"]["kernel"]),
    ]
    jax.tree.map(np.testing.assert_array_equal, *zip(*truths, strict=True))
    bias = alone(learning_rate=5e-2)["decoder"]["layers"]["q_proj"]["bias"]
    np.testing.assert_array_equal(found["decoder"]["layers"]["q_proj"]["bias"], bias)


def test_adapters_are_a_group_unless_their_module_is():
    def b_of(**changes):
        config = optim(**({"warmup_steps": 1, "clip_norm": 1e9} | changes))
        return run(training.make_optimizer(config, STEPS))["decoder"]["layers"]["q_proj"]["lora"]["b"]

    lora, layers = {"learning_rate": 2e-2}, {"learning_rate": 3e-2}
    np.testing.assert_array_equal(b_of(groups={"lora": lora}), b_of(**lora))
    np.testing.assert_array_equal(b_of(groups={"lora": lora, "decoder/layers": layers}), b_of(**layers))


def test_clipping_goes_over_all_groups_together():
    """Two gradients of norms 3 and 4, of a norm of 5 together, are scaled to the 2.5 that they may have."""
    gradients = {"adaptor": {"kernel": jnp.asarray([3.0])}, "decoder": {"kernel": jnp.asarray([4.0])}}
    config = optim(clip_norm=2.5, warmup_steps=1, groups={"adaptor": {"learning_rate": 1.0}})
    optimizer = training.make_optimizer(config, STEPS)
    _, state = optimizer.update(gradients, optimizer.init(gradients), gradients)
    moments = state[1].mu
    np.testing.assert_allclose(moments["adaptor"]["kernel"], (1 - config.b1) * 3 / 2, rtol=1e-6)
    np.testing.assert_allclose(moments["decoder"]["kernel"], (1 - config.b1) * 4 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, 'optim.schedule: expected one of cosine, linear, constant, wsd, found "cosin"'),
        ({"warmup_steps": 100}, "optim.warmup_steps: expected fewer than the 100 steps"),
        (
            {"schedule": "wsd", "warmup_steps": 10, "decay_steps": 91},
            "optim.decay_steps: expected at most the 90 of 100 steps that the warm-up leaves, found 91",
        ),
        ({"groups": {"adaptor": {"rate": 1.0}}}, "optim.groups.adaptor: expected some of learning_rate.*found rate"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        training.make_optimizer(optim(**({"warmup_steps": 1} | changes)), STEPS)


def test_a_group_of_nothing_is_refused():
    check_groups(optim(groups={"adaptor": {}, "lora": {}, "decoder/embed_tokens": {}}), numbers())
    with pytest.raises(ValueError, match=r"optim.groups.adapter: no trained parameter.*did you mean adaptor\?"):
        check_groups(optim(groups={"adapter": {}}), numbers())
