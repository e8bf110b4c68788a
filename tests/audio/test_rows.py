"""Several chunks in one row come out as each alone, and never meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import lengths, log_mel, mel, rows
from tests import small

SIZES = (321, 16_000, 40_000, 5 * 1_280 - 1, 479, 1_280, 12_345)


def packed(chunks, spare: int = 2):
    """A row with the chunks one after another, and the unit at which each begins."""
    starts = np.cumsum([0, *(rows.units(len(chunk)) for chunk in chunks)])
    width = int(starts[-1]) + spare
    row, sizes, offsets = np.zeros(width * 1_280, np.float32), np.zeros(width, np.int32), np.zeros(width, np.int32)
    for chunk, start in zip(chunks, starts, strict=False):
        rows.put(row, sizes, offsets, int(start), chunk)
    return (row[None], sizes[None], offsets[None]), starts[:-1].tolist()


def sounds(sizes=SIZES):
    return [small.sound(size / 16_000, seed)[:size] for seed, size in enumerate(sizes)]


@given(st.integers(321, lengths.MAX_CHUNK_SAMPLES))
def test_a_chunk_owns_room_for_a_zero_at_every_rate(samples):
    own, tokens = rows.units(samples), lengths.audio_tokens(samples)
    assert lengths.mel_frames(samples) + 2 <= 8 * own
    assert lengths.conv_frames(samples) + 1 <= 4 * own
    assert lengths.pooled_frames(samples) + 1 <= 2 * own
    assert tokens <= lengths.adaptor_frames(samples) <= own <= tokens + 1


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_log_mel_of_each_chunk_is_that_of_the_chunk_alone(way, monkeypatch):
    if way == "accelerator":
        monkeypatch.setattr(mel, "_one_after_another", mel._all_at_once)
    chunks = sounds()
    row, starts = packed(chunks)
    together = np.asarray(log_mel(*map(jnp.asarray, row)))[0]
    silent = np.ones(len(together), bool)
    for chunk, start in zip(chunks, starts, strict=True):
        alone = np.asarray(log_mel(jnp.asarray(chunk[None]), jnp.array([len(chunk)])))[0]
        own = slice(8 * start, 8 * start + len(alone))
        np.testing.assert_allclose(together[own], alone, atol=0 if way == "cpu" else 5e-6)
        silent[own] = False
    assert not together[silent].any()


def test_a_loud_chunk_does_not_raise_the_floor_of_another_in_its_row():
    """94 dB apart: the floor is 80 dB below a chunk's own loudest band."""
    loud, quiet = sounds((16_000, 8_000))
    chunks = [10 * loud, 2e-4 * quiet]
    row, (_, start) = packed(chunks)
    together = np.asarray(log_mel(*map(jnp.asarray, row)))[0]
    alone = np.asarray(log_mel(jnp.asarray(chunks[1][None]), jnp.array([8_000])))[0]
    np.testing.assert_allclose(together[8 * start : 8 * start + len(alone)], alone, atol=5e-6)
    assert alone[: lengths.mel_frames(8_000)].std() > 0.1


encode = jax.jit(lambda rule, *row: small.model(scale=1.0).encode_audio(*row, length_rule=rule), static_argnums=0)
WIDTH = 40_000


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(321, WIDTH), min_size=1, max_size=5), st.sampled_from(lengths.LENGTH_RULES))
def test_features_of_each_chunk_are_those_of_the_chunk_alone(sizes, rule):
    chunks = sounds(sizes)
    row, starts = packed(chunks, spare=160 - sum(map(rows.units, sizes)))
    together = np.asarray(encode(rule, *row))[0]
    for chunk, start in zip(chunks, starts, strict=True):
        count = lengths.audio_tokens(len(chunk), rule)
        padded = np.pad(chunk, (0, WIDTH - len(chunk)))[None]
        alone = np.asarray(encode(rule, padded, np.array([len(chunk)])))[0, :count]
        np.testing.assert_allclose(together[start : start + count], alone, atol=1e-5 * np.abs(alone).max())


def test_another_sound_beside_a_chunk_moves_nothing_of_it():
    """To the bit, features and gradient: full-scale noise in place of the neighbours."""
    chunks = sounds()
    row, starts = packed(chunks)
    before = np.asarray(encode("hf", *row))[0]
    for i, (chunk, start) in enumerate(zip(chunks, starts, strict=True)):
        noise = [np.sign(small.sound(3, 99))[: len(chunk)] for chunk in chunks]
        other, _ = packed([*noise[:i], chunk, *noise[i + 1 :]])
        own = slice(start, start + lengths.audio_tokens(len(chunk)))
        np.testing.assert_array_equal(np.asarray(encode("hf", *other))[0, own], before[own])
