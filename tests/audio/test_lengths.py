"""Every length against its formula in MODEL.md §4, on ints, numpy and jax arrays alike."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.audio import lengths


@pytest.mark.parametrize(
    "seconds, tokens",
    [(0.5, 6), (1, 13), (2, 25), (5, 63), (10, 125), (25, 313), (29.9, 374), (29.98, 375)],
)
def test_documented_examples(seconds, tokens):
    assert lengths.audio_tokens(round(seconds * 16000)) == tokens


@given(st.integers(1, 200_000_000))
def test_formulas(n):
    t = (n + 479) // 160
    c = (t - 1) // 2 + 1
    p = c // 2
    assert lengths.mel_frames(n) == t
    assert lengths.counted_frames(n) == lengths.counted_frames(n, "hf") == t - 2 == -(-n // 160)
    assert lengths.counted_frames(n, "vllm") == t
    assert lengths.conv_frames(n) == c
    assert lengths.pooled_frames(n) == p
    assert lengths.adaptor_frames(n) == (p - 1) // 2 + 1
    for rule, counted in (("hf", t - 2), ("vllm", t)):
        e = (counted + 1) // 2 // 2
        assert lengths.audio_tokens(n, rule) == (e - 1) // 2 + 1


@given(st.integers(1, 479_680))
def test_relations(n):
    hf, vllm = lengths.audio_tokens(n), lengths.audio_tokens(n, "vllm")
    assert hf <= vllm <= hf + 1
    assert vllm <= lengths.adaptor_frames(n)  # a row is computed for every token
    assert vllm >= 1
    assert (hf >= 1) == (n >= lengths.MIN_SAMPLES)


def test_a_quarter_of_all_lengths_differ_between_the_rules():
    n = np.arange(1, 640 * 100 + 1)
    assert np.mean(lengths.audio_tokens(n) != lengths.audio_tokens(n, "vllm")) == 0.25


def test_limits():
    assert lengths.MAX_CHUNK_SAMPLES == 29.98 * 16000
    assert lengths.conv_frames(lengths.MAX_CHUNK_SAMPLES) == 1500
    assert lengths.conv_frames(lengths.MAX_CHUNK_SAMPLES + 1) == 1501
    assert lengths.audio_tokens(320) == 0 and lengths.audio_tokens(321) == 1
    assert lengths.audio_tokens(0) == 0


@pytest.mark.parametrize("rule", ["hf", "vllm"])
def test_arrays_agree_with_ints(rule):
    n = [*range(0, 2000, 7), 400_000, 479_680]
    expected = [lengths.audio_tokens(one, rule) for one in n]
    assert lengths.audio_tokens(np.array(n), rule).tolist() == expected
    found = lengths.audio_tokens(jnp.array(n), rule)
    assert found.tolist() == expected and found.dtype == jnp.int32


def test_unknown_rule():
    with pytest.raises(ValueError, match='length_rule: expected one of hf, vllm, found "HF"'):
        lengths.audio_tokens(16000, "HF")
