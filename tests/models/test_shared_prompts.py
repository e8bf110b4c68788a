"""Replies that share one copy of their prompt: as if each had its own, forward and backward."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.config import DecoderConfig
from stepaudio_jax.models.decoder import Decoder

CONFIG = DecoderConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, max_position_embeddings=1024,
)  # fmt: skip


def row_of(prompts: list[tuple[int, list[int]]], length: int) -> dict[str, np.ndarray]:
    """A row of (tokens of a prompt, tokens of each reply to it), one after another."""
    segment_ids, positions, groups = np.zeros((3, 1, length), np.int32)
    samples, begin, segment = sum(len(replies) for _, replies in prompts), 0, 0
    for group, (size, replies) in enumerate(prompts, start=1):
        own = slice(begin, begin + size)
        segment_ids[0, own], positions[0, own], groups[0, own] = samples + group, np.arange(size), -group
        begin = own.stop
        for reply in replies:
            own, segment = slice(begin, begin + reply), segment + 1
            segment_ids[0, own], positions[0, own], groups[0, own] = segment, size + np.arange(reply), group
            begin = own.stop
    return {"segment_ids": segment_ids, "positions": positions, "groups": groups}


@pytest.mark.parametrize("sizes", [(30, [7, 1, 12]), (290, [80, 120, 60])], ids=["a block", "several blocks"])
def test_replies_see_the_prompt_they_share(sizes):
    prompt, replies = sizes
    shape, length = row_of([sizes, (5, [4, 4])], prompt + sum(replies) + 17), prompt + sum(replies) + 17
    decoder = Decoder(CONFIG, nnx.Rngs(0))
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 64)), jnp.float32)
    ends = np.cumsum([prompt, *replies])

    def together(embeds):
        found = decoder(embeds, shape["positions"], shape["segment_ids"], groups=shape["groups"])
        return [found[0, start:stop] for start, stop in itertools.pairwise(ends)]

    def alone(embeds):
        found = []
        for start, stop in itertools.pairwise(ends):
            whole = jnp.concatenate([embeds[:, :prompt], embeds[:, start:stop]], 1)
            found.append(decoder(whole, jnp.arange(whole.shape[1])[None])[0, prompt:])
        return found

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradient(of, embeds):
        def loss(embeds):
            parts = of(embeds)
            return sum((jnp.sin(3 * part) * (i + 1)).sum() for i, part in enumerate(parts)), parts

        return jax.grad(loss, has_aux=True)(embeds)

    (found, parts), (expected, wanted) = (with_gradient(of, embeds) for of in (together, alone))
    for a, b in zip(parts, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=3e-5 * float(jnp.abs(expected).max()))


def test_padding_stays_out():
    shape = row_of([(6, [3, 2])], 16)
    decoder = Decoder(CONFIG, nnx.Rngs(0))
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 64)), jnp.float32)
    other = embeds.at[:, 11:].set(1e3)
    first, second = (
        decoder(x, shape["positions"], shape["segment_ids"], groups=shape["groups"])[0, :11] for x in (embeds, other)
    )
    np.testing.assert_array_equal(first, second)
