"""The audio encoder is frozen in every stage (R1 §4, R1.5 §3), by what each config says is trained and what is not."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import configs
from stepaudio_jax.training.initial import new_model
from stepaudio_jax.training.step import init_state

NAMES = sorted(each.name for each in pkgutil.iter_modules(configs.__path__))
MADE_FROM_NOTHING = {"tiny", "tiny_finish", "encoder_pretraining_tiny"}
"""What made the shipped model: its encoder was random."""


def runs_of(name):
    """The runs of a config: itself, or those that its recipe is made of; (name, config)."""
    module = importlib.import_module(f"configs.{name}")
    if not hasattr(module, "get_config"):
        return []
    config = module.get_config()
    parts = [config] if "trainable" in config else [config[part] for part in ("sft", "rlvr", "dpo") if part in config]
    return [each for each in parts if "trainable" in each]


@pytest.mark.parametrize("name", [name for name in NAMES if runs_of(name)])
def test_the_encoder_is_frozen_in_every_stage(name):
    """Its parameters are none of those that are trained, as the trainers divide them (R1 §4, R1.5 §3)."""
    for config in runs_of(name):
        config.model = "tiny"  # which parameters there are does not go by their sizes
        model = nnx.eval_shape(lambda config=config: new_model(config))
        _, state = init_state(model, optax.sgd(1.0), trainable=config.trainable, frozen_dtype=jnp.float32)
        assert ("encoder" in state.params) == (name in MADE_FROM_NOTHING)
        assert "encoder" in {**state.params, **state.frozen}
        assert jax.tree.leaves(state.params), "something is trained"


def test_recipes_have_runs():
    assert len(runs_of("mgrd_tiny")) == 2 and len(runs_of("self_cognition_tiny")) == 2
    assert sum(bool(runs_of(name)) for name in NAMES) >= 24
