"""Integers for weights and for the cache: what they change, by how much."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.evals.evaluate import evaluate
from stepaudio_jax.evals.miniature import held_out_items, score_answer
from stepaudio_jax.inference import EngineOptions, StepAudio
from stepaudio_jax.inference.calibration import kv_scale
from stepaudio_jax.inference.programs import Programs
from stepaudio_jax.models.layers import Linear, unstack
from tests import small


def linear(layers=None) -> Linear:
    return Linear(nnx.Rngs(0), (24, 40), ("embed", "mlp"), bias=True, layers=layers)


def test_a_matrix_of_integers_is_the_nearest_one():
    exact, made = linear(), linear()
    made.quantise()
    assert made.kernel.dtype == jnp.int8 and made.scale.shape == (40,)
    weights = made.kernel[...] * made.scale[...]
    largest = np.abs(exact.kernel[...]).max(0)
    np.testing.assert_allclose(made.scale[...], largest / 127, rtol=1e-2)
    assert (np.abs(weights - exact.kernel[...]) <= largest / 127 * 0.51).all()
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    np.testing.assert_allclose(made(x), x @ weights + exact.bias[...], atol=1e-5)


def test_stacked_separate_and_output_major_are_the_same():
    stacked = linear(layers=3)
    separate = unstack(stacked)
    stacked.quantise()
    for number, layer in enumerate(separate):
        if number:
            layer.store_output_major()
        layer.quantise()
        kernel = layer.kernel[...].T if number else layer.kernel[...]
        np.testing.assert_array_equal(kernel, stacked.kernel[...][number])
        np.testing.assert_array_equal(layer.scale[...], stacked.scale[...][number])
    assert stacked.kernel.get_metadata("logical_axes") == ("layers", "embed", "mlp")
    assert stacked.scale.get_metadata("logical_axes") == ("layers", "mlp")


def test_scales_hold_what_the_built_in_prompts_give():
    """No key or value of the calibration is clipped, and none has less than its pair's share of the range."""
    model = small.model()
    programs = Programs(model, vocab_size=512, steps=1)
    scale = np.asarray(kv_scale(programs, small.tokenizer(), 4))
    assert scale.shape == (2, 4, 8) and (scale > 0).all()
    np.testing.assert_array_equal(scale[:, ::2, :4], scale[:, ::2, 4:])


@functools.cache
def exam(**options):
    """Accuracy on held-out scenes, and each reply's log-probabilities by its tokens."""
    model = StepAudio.load("tiny", options=EngineOptions(max_length=512, pages=1024, **options))
    result = evaluate(model.generate, held_out_items(2), score_answer)
    written = {item.request.id: zip(done.token_ids, done.log_probs, strict=True) for item, done, _ in result.answers}
    return result.overall.mean, {name: dict(enumerate(pairs)) for name, pairs in written.items()}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": "int8"}, {"kv_cache": "int8"}], ids=str)
def test_the_tiny_model_answers_as_well(options):
    """While two replies are the same, their log-probabilities are close; so are the marks."""
    (mark, found), (expected_mark, expected) = exam(**options), exam()
    apart, same, total = [], 0, 0
    for name, reply in expected.items():
        for place, (token, log_prob) in reply.items():
            total += 1
            if found[name].get(place, (None,))[0] != token:
                break
            same += 1
            apart.append(abs(found[name][place][1] - log_prob))
    assert same > 0.85 * total
    assert 0 < np.mean(apart) < 0.02
    assert abs(mark - expected_mark) <= 0.12


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='weights: expected "int8" or None, found'):
        EngineOptions(weights="int4")
    with pytest.raises(ValueError, match="max_rows: expected at least 1, found 0"):
        EngineOptions(max_rows=0)
