"""Cutting loses nothing and adds nothing; stacking takes the smallest bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.audio import chunk, lengths, stack
from stepaudio_jax.audio.chunks import BUCKETS

CUT = 400_000


@pytest.mark.parametrize(
    "samples, sizes",
    [
        (321, [321]),
        (CUT, [CUT]),  # the released client adds an empty chunk here
        (3 * CUT, [CUT] * 3),
        (CUT + 1, [CUT + 1]),
        (CUT + 320, [CUT + 320]),
        (CUT + 321, [CUT, 321]),
        (2 * CUT + 16_000, [CUT, CUT, 16_000]),
        (2 * CUT + 320, [CUT, CUT + 320]),
    ],
)
def test_where_it_cuts(samples, sizes):
    assert [len(piece) for piece in chunk(np.zeros(samples, np.float32))] == sizes


@given(st.integers(lengths.MIN_SAMPLES, 5 * CUT), st.booleans())
def test_nothing_is_lost(samples, near):
    samples = samples // CUT * CUT + samples % 700 + lengths.MIN_SAMPLES if near else samples
    sound = np.arange(samples, dtype=np.float32)
    pieces = chunk(sound)
    assert np.array_equal(np.concatenate(pieces), sound)
    assert all(lengths.audio_tokens(len(piece)) >= 1 for piece in pieces)
    assert all(len(piece) <= CUT + 320 < lengths.MAX_CHUNK_SAMPLES for piece in pieces)


def test_buckets_hold_every_chunk():
    assert list(BUCKETS) == sorted(BUCKETS)
    assert BUCKETS[-2] >= CUT + 320 and BUCKETS[-1] >= lengths.MAX_CHUNK_SAMPLES


def test_stack():
    pieces = [np.full(size, size, np.float32) for size in (500, 16_001, 1)]
    samples, sizes = stack(pieces)
    assert samples.shape == (3, 32_000) and samples.dtype == np.float32
    assert sizes.tolist() == [500, 16_001, 1] and sizes.dtype == np.int32
    for row, piece in zip(samples, pieces, strict=True):
        assert np.array_equal(row[: len(piece)], piece) and not row[len(piece) :].any()
    assert stack([])[0].shape == (0, 16_000)
    assert stack(pieces, [20_000])[0].shape == (3, 20_000)


def test_stack_refuses_what_no_bucket_holds():
    with pytest.raises(ValueError, match=r"30\.06 s, more than the largest bucket of 30\.00 s"):
        stack([np.zeros(481_000, np.float32)])
