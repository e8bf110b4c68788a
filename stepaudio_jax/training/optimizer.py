"""AdamW with decoupled decay (arXiv:1711.05101), schedules, gradient clipping and rates by group, all from Optax.

Muon is not offered. Its orthogonalisation multiplies whole matrices with themselves, five times a step: where a matrix
lies in parts over fsdp, each of those products would gather it, in float32, for all layers of a stack at once.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from stepaudio_jax.training.configs import Config

SCHEDULES = ("cosine", "linear", "constant", "wsd")
GROUP_KEYS = ("learning_rate", "end_learning_rate", "weight_decay")
"""What a group may have of its own. Nothing that changes the optimizer's state: a run goes on with other groups."""


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """The optimizer of a config's `optim` section. Equal settings give the same object, so that what is compiled with
    it is shared.

    Args:
      config: learning_rate, end_learning_rate, warmup_steps, schedule, decay_steps (for wsd), b1, b2, weight_decay,
        clip_norm (of all gradients together); groups: module path → what differs for it, such as
        {"adaptor": {"learning_rate": 1e-4}} or {"decoder/embed_tokens": …}, and "lora" for all adapters. A parameter
        goes by the longest path that it lies under.
      steps: total steps of the schedule.

    Raises:
      ValueError: a schedule that does not exist or does not fit the steps, or a group with an unknown key.
    """
    return _optimizer(json.dumps(config.to_dict(), sort_keys=True), steps)


@functools.lru_cache(maxsize=32)
def _optimizer(settings: str, steps: int) -> optax.GradientTransformation:
    config: Any = ml_collections.ConfigDict(json.loads(settings))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        _decay_and_rate(config, steps),
    )


def _decay_and_rate(config: Config, steps: int) -> optax.GradientTransformation:
    """−rate · (update + decay · parameter), both by group, decay for matrices only."""
    groups = {"": {}} | config.groups.to_dict()
    for name, values in groups.items():
        if unknown := [key for key in values if key not in GROUP_KEYS]:
            raise ValueError(f"optim.groups.{name}: expected some of {', '.join(GROUP_KEYS)}, found {unknown[0]}")
    settings = {name: config.to_dict() | values for name, values in groups.items()}
    schedules = {name: make_schedule(values, steps) for name, values in settings.items()}

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        rates = {name: jnp.asarray(schedule(state.count)) for name, schedule in schedules.items()}

        def one(key, update, parameter):
            path = _path(key)
            group = _group(path, groups)
            decay = settings[group]["weight_decay"] if _decays(path) else 0.0
            return -rates[group] * (update + decay * parameter)

        changed = jax.tree_util.tree_map_with_path(one, updates, params)
        return changed, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def make_schedule(values: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Step → rate of an `optim` section: from 0 up in warmup_steps, then by the schedule.

    cosine, linear: down to end_learning_rate at the last step. constant: stays. wsd (warm-up, stable, decay,
    arXiv:2404.06395): stays, and goes down linearly in the last decay_steps.
    """
    name, warmup = values["schedule"], values["warmup_steps"]
    peak, end = values["learning_rate"], values["end_learning_rate"]
    decay = values["decay_steps"] if name == "wsd" else 0
    if name not in SCHEDULES:
        raise ValueError(f'optim.schedule: expected one of {", ".join(SCHEDULES)}, found "{name}"')
    if warmup >= steps:
        raise ValueError(f"optim.warmup_steps: expected fewer than the {steps} steps of the run, found {warmup}")
    if warmup + decay > steps:
        raise ValueError(
            f"optim.decay_steps: expected at most the {steps - warmup} of {steps} steps that the warm-up leaves, "
            f"found {decay}"
        )
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end)
    rise, stay = optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)
    if name == "constant":
        return optax.join_schedules([rise, stay], [warmup])
    begin = steps - decay if name == "wsd" else warmup
    fall = optax.linear_schedule(peak, end, steps - begin)
    return optax.join_schedules([rise, stay, fall], [warmup, begin])


def check_groups(config: Config, params: Any) -> None:
    """Refuses a group of `optim.groups` that no trained parameter belongs to.

    Raises:
      ValueError: naming it and the nearest module path.
    """
    paths = [_path(key) for key, _ in jax.tree_util.tree_leaves_with_path(params)]
    used = {_group(path, config.groups) for path in paths}
    for name in config.groups:
        if name not in used:
            known = {"/".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"optim.groups.{name}: no trained parameter lies under it{hint}")


def _path(key: Any) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in key)


def _group(path: tuple[str, ...], groups: Mapping[str, Any]) -> str:
    """The longest part of a path that names a group, then "lora", then "" for all the rest."""
    names = ["/".join(path[:length]) for length in range(len(path), 0, -1)] + ["lora"] * ("lora" in path)
    return next((name for name in names if name in groups), "")


def _decays(path: tuple[str, ...]) -> bool:
    """Kernels and tables decay; norm scales and biases, which stacked layers make two-dimensional, do not."""
    return path[-1] not in ("scale", "bias")
