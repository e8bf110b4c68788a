"""The composition: shapes, logical axes, padding that changes nothing, stacks that can be unstacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.data import collate, encode
from stepaudio_jax.models import StepAudio, hf_names
from stepaudio_jax.models.decoder import PagedCache
from stepaudio_jax.models.layers import REMAT_POLICIES, unstack
from stepaudio_jax.text import Audio, Conversation, human
from tests import small


def test_the_33b_has_the_released_size():
    config = StepAudioConfig.preset("33b")
    shapes = nnx.state(nnx.eval_shape(lambda: StepAudio(config, rngs=nnx.Rngs(0))), nnx.Param)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(total / 1e9, 3) == 33.487
    names = hf_names.tensor_map(config)
    assert len(names) == 1264
    assert sum(name.startswith("encoder.") for name in names) == 487
    assert sum(name.startswith("adapter.") for name in names) == 6
    assert sum(name.startswith("model.") for name in names) == 770


def test_every_parameter_names_its_axes():
    state = nnx.state(small.model(), nnx.Param)
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(leaves) > 40
    for leaf in leaves:
        assert len(leaf.get_metadata()["logical_axes"]) == leaf[...].ndim


def test_released_names_go_both_ways():
    model = small.model()
    tensors = hf_names.save_state(model)
    assert tensors["encoder.conv1.weight"].shape == (16, 128, 3)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)
    other = nnx.eval_shape(lambda: small.model(seed=1))
    hf_names.load_state(other, tensors)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), nnx.state(other, nnx.Param))
    tensors["model.layers.0.mlp.down_prj.weight"] = tensors.pop("model.layers.0.mlp.down_proj.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][1:]
    with pytest.raises(ValueError, match=r"3 problems.*missing .*down_proj.*did you mean .*down_proj.*lm_head.weight"):
        hf_names.load_state(other, tensors)


def batch(clips, length=96, width=33_280):
    examples = [
        encode(Conversation((human(*[Audio(c) for c in row], "What is it?"),)), small.tokenizer(), generate=True)
        for row in clips
    ]
    return collate([[x] for x in examples], length=length, sound_rows=sum(map(len, clips)), sound_samples=width)


def logits(model, data):
    return model(data.tokens, data.positions, data.segment_ids, data.audio)


def test_rows_and_padding_change_nothing():
    """Any number of clips a row, none too; a longer bucket; neighbours in the batch."""
    model = small.model()
    one, two = small.sound(0.7, 1), small.sound(1.3, 2)
    together = logits(model, batch([[one, two], [], [two]], length=128))
    for row, clips in enumerate([[one, two], [], [two]]):
        alone = batch([clips], width=49_920)
        size = int(alone.segment_ids.sum())
        expected = logits(model, alone)[0, :size]
        np.testing.assert_allclose(together[row, :size], expected, atol=2e-4, rtol=1e-4)


def test_features_are_bit_equal_within_a_bucket():
    model = small.model()
    encode_audio = jax.jit(lambda s, n: model.encode_audio(s, n))
    clips = [small.sound(seconds, i) for i, seconds in enumerate((0.05, 0.5, 1.0, 1.99))]
    padded = np.stack([np.pad(clip, (0, 32000 - len(clip)), constant_values=9.0) for clip in clips])
    sizes = np.array([len(clip) for clip in clips])
    mixed = encode_audio(padded, sizes)
    for i, clip in enumerate(clips):
        others = np.random.default_rng(i).permutation(4)
        again = encode_audio(padded[others], sizes[others])[list(others).index(i)]
        count = int(lengths.audio_tokens(len(clip)))
        np.testing.assert_array_equal(mixed[i, :count], again[:count])


@pytest.mark.parametrize("remat", [name for name in REMAT_POLICIES if name != "none"])
def test_remat_changes_no_gradient(remat):
    model, data = small.model(), batch([[small.sound(0.5)]])
    graphdef, params = nnx.split(model, nnx.Param)

    def loss(params, remat):
        hidden = nnx.merge(graphdef, params).hidden(
            data.tokens, data.positions, data.segment_ids, data.audio, remat=remat
        )
        return jnp.square(hidden).mean()

    plain, saved = (jax.jit(jax.grad(loss), static_argnums=1)(params, name) for name in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), plain, saved)


def test_an_unknown_remat_policy_is_named():
    with pytest.raises(ConfigError, match='remat: expected one of none, full, attention, gate, products, found "all"'):
        data = batch([[]])
        small.model().hidden(data.tokens, data.positions, data.segment_ids, remat="all")


def test_separate_layers_compute_what_the_stack_does():
    model, data = small.model(), batch([[small.sound(0.5)]])
    expected = logits(model, data)
    model.decoder.layers, model.encoder.layers = unstack(model.decoder.layers), unstack(model.encoder.layers)
    np.testing.assert_allclose(logits(model, data), expected, atol=1e-4)


def test_extending_a_cache_equals_the_whole():
    """Prefill of a part and token by token after it, stacked and separate layers, rows at different places."""
    model = small.model()
    decoder = model.decoder
    tokens = np.random.default_rng(0).integers(9, 500, (2, 12))
    embeds = decoder.embed(tokens)
    positions = np.broadcast_to(np.arange(12), (2, 12))
    expected = decoder(embeds, positions)
    for separate in (False, True):
        if separate:
            decoder.layers = unstack(decoder.layers)
        table = np.array([[5, 0, 3], [1, 4, 2]])
        cache = PagedCache(jnp.full((2 * 6, 4, 4, 8), jnp.nan))
        starts, counts = np.array([0, 0]), np.array([5, 3])
        hidden, cache = decoder.extend(embeds[:, :5], starts, counts, cache, table)
        np.testing.assert_allclose(hidden[0], expected[0, :5], atol=1e-4)
        np.testing.assert_allclose(hidden[1, :3], expected[1, :3], atol=1e-4)
        for step in range(7):
            at = counts + step
            hidden, cache = decoder.extend(embeds[np.arange(2), at][:, None], at, np.ones(2, int), cache, table)
            np.testing.assert_allclose(hidden[:, 0], expected[np.arange(2), at], atol=1e-4)


def test_a_quantised_cache_is_close():
    """Keys and values as integers of a scale for each channel."""
    decoder = small.model(scale=1.0).decoder
    embeds = decoder.embed(np.random.default_rng(0).integers(9, 500, (1, 24)))
    exact = decoder(embeds, np.arange(24)[None])
    table, everything = np.arange(6)[None], (np.array([0]), np.array([24]))
    _, cache = decoder.extend(embeds, *everything, PagedCache(jnp.zeros((2 * 6, 4, 4, 8))), table)
    scale = jnp.abs(cache.pages).reshape(2, -1, 4, 8).max(1) / 127
    empty = PagedCache(jnp.zeros((2 * 6, 4, 4, 8), jnp.int8), scale)
    hidden, quantised = decoder.extend(embeds, *everything, empty, table)
    steps = np.asarray(cache.pages.reshape(2, -1, 4, 8) - quantised.pages.reshape(2, -1, 4, 8) * scale[:, None])
    # Of the first layer: what comes into the second differs.
    assert np.abs(steps[0]).max() <= 0.5 * float(scale[0].max()) * (1 + 1e-4)
    error = float(jnp.linalg.norm(hidden - exact) / jnp.linalg.norm(exact))
    assert 0 < error < 0.02


def test_more_frames_than_positions_are_refused():
    with pytest.raises(ValueError, match="1501 positions, the encoder has 1500"):
        small.model().encode_mel(jnp.zeros((1, 3001, 128)), jnp.array([480000]))
