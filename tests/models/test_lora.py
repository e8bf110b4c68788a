"""Adapters against the explicit product: what they compute, their gradients, what merging them makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stepaudio_jax import training
from stepaudio_jax.config import ConfigError
from stepaudio_jax.models import LoraConfig, add_lora, merge_lora
from stepaudio_jax.models.lora import DECODER_MATRICES, is_lora, linear_layers
from tests import small

ALL = LoraConfig(rank=3, alpha=4.0, targets=("linear1", "linear2", *DECODER_MATRICES), modules=("adaptor", "decoder"))


def score(model):
    """A number that depends on adaptor and decoder, none of its derivatives zero."""
    rng = np.random.default_rng(5)
    sound = jnp.asarray(rng.standard_normal((2, 12, 16)), jnp.float32)
    embeds = model.adaptor(sound)
    hidden = model.decoder(embeds, np.broadcast_to(np.arange(6), (2, 6)))
    return (hidden * rng.standard_normal(hidden.shape)).sum()


def parameters(model):
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def jitted(model, transform=lambda function: function):
    graphdef, variables = nnx.split(model, nnx.Param)
    return jax.jit(transform(lambda variables: score(nnx.merge(graphdef, variables))))(variables)


def gradients(model):
    found = jitted(model, jax.grad)
    return {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(found)}


def explicit(model):
    """W + scale·A·B of every adapted layer, in float64."""
    return {
        path: np.asarray(layer.kernel[...], np.float64)
        + layer.lora.scale * np.asarray(layer.lora.a[...], np.float64) @ np.asarray(layer.lora.b[...], np.float64)
        for path, layer in linear_layers(model)
        if layer.lora is not None
    }


def test_fresh_adapters_change_nothing():
    model = small.model(scale=1.0)
    before = jitted(model)
    add_lora(model, ALL, nnx.Rngs(1))
    np.testing.assert_array_equal(jitted(model), before)


def test_a_starts_as_in_peft():
    """torch's kaiming_uniform_(a=√5): within ±√(6 / (1 + 5) / in), every layer of a stack by itself."""
    model = small.model(intermediate_size=1000)
    add_lora(model, LoraConfig(rank=64, targets=("down_proj", "q_proj")), nnx.Rngs(0))
    for name, size in (("down_proj", 1000), ("q_proj", 32)):
        a = np.asarray(getattr(model.decoder.layers, name).lora.a[...])
        assert a.shape == (2, size, 64) and np.abs(a).max() <= 1 / np.sqrt(size)
        for layer in a:
            assert layer.std() == pytest.approx(1 / np.sqrt(3 * size), rel=0.05)


def test_gradients_are_those_of_the_explicit_product():
    """Of G, the gradient of W + scale·A·B: scale·G·Bᵀ for A, scale·Aᵀ·G for B."""
    model = small.adapted(ALL, scale=1.0)
    found = gradients(model)
    merged = small.adapted(ALL, scale=1.0)
    merge_lora(merged)
    of_merged = gradients(merged)
    adapted = {path: layer for path, layer in linear_layers(model) if layer.lora is not None}
    assert len(adapted) == 9
    for path, layer in adapted.items():
        g = of_merged[(*path, "kernel")]
        a, b = (np.asarray(x[...], np.float64) for x in (layer.lora.a, layer.lora.b))
        truths = {"a": g @ b.swapaxes(-1, -2), "b": a.swapaxes(-1, -2) @ g}
        for name, truth in truths.items():
            truth = truth * layer.lora.scale
            error = np.linalg.norm(found[(*path, "lora", name)] - truth) / np.linalg.norm(truth)
            assert error < 2e-5, (path, name, error)


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_the_explicit_product(rslora):
    config = LoraConfig(rank=3, alpha=4.0, rslora=rslora)
    assert config.scale == pytest.approx(4 / 3**0.5 if rslora else 4 / 3)
    model = small.adapted(config, scale=1.0)
    before, truth = jitted(model), explicit(model)
    merge_lora(model)
    assert not any(map(is_lora, parameters(model)))
    assert float(jitted(model)) == pytest.approx(float(before), rel=1e-5)
    for path, layer in linear_layers(model):
        if path in truth:
            np.testing.assert_allclose(layer.kernel[...], truth[path], rtol=1e-6, atol=1e-7)


def test_merging_into_bfloat16_rounds_once():
    model = small.adapted(ALL)
    for _, layer in linear_layers(model):
        layer.kernel.set_value(layer.kernel[...].astype(jnp.bfloat16))
    truth = explicit(model)
    merge_lora(model)
    for path, layer in linear_layers(model):
        if path in truth:
            assert layer.kernel.dtype == jnp.bfloat16
            error = np.abs(np.asarray(layer.kernel[...], np.float64) - truth[path])
            assert np.all(error <= np.abs(truth[path]) * 2.0**-8 + 1e-6)  # half a unit in the last of 8 bits


def test_only_adapters_train():
    """Their optimizer state is all there is; what is frozen lies in the compute type and stays."""
    model = small.adapted(LoraConfig(rank=2))
    optimizer = optax.adam(1.0)
    graphdef, state = training.init_state(model, optimizer, trainable=("lora",), frozen_dtype=jnp.bfloat16)
    trained, frozen = jax.tree.leaves(state.params), jax.tree.leaves(state.frozen)
    assert len(trained) == 14 and {x.dtype for x in trained} == {jnp.dtype("float32")}
    assert {x.dtype for x in frozen} == {jnp.dtype("bfloat16")}
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.size > 1) == 2 * sum(x.size for x in trained)
    whole = parameters(training.merge(graphdef, state.params, state.frozen))
    assert whole.keys() == parameters(model).keys()
    _, both, rest = training.split_model(model, ("adaptor", "lora"))
    assert both.keys() == {"adaptor", "decoder"} and both["decoder"] == state.params["decoder"]
    assert rest.keys() == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_pro",)}, "lora.targets: no linear layer q_pro in decoder.*did you mean q_proj?"),
        ({"targets": ("query",)}, "no linear layer query in decoder, which have down_proj"),
        ({"modules": ("ears",)}, "lora.modules: expected some of encoder, adaptor, decoder, found ears"),
        ({"rank": 0}, "expected a positive rank and alpha, found rank 0"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ConfigError, match=message):
        add_lora(small.model(), LoraConfig(**change), nnx.Rngs(0))


def test_no_adapters_twice_and_none_without_asking():
    model = small.model()
    with pytest.raises(ValueError, match='found "lora", but the model has no adapters'):
        training.split_model(model, ("lora",))
    add_lora(model, LoraConfig(rank=2), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="has adapters already; merge them first"):
        add_lora(model, LoraConfig(rank=2), nnx.Rngs(0))
