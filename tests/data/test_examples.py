"""Conversations to arrays: audio tokens and features must agree, nothing is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import AudioError, lengths
from stepaudio_jax.data import bucket, collate, encode
from stepaudio_jax.text import Audio, Conversation, human
from tests import small


def example(*sizes: int, text: str = "What?", **options):
    clips = [Audio(np.full(size, i + 1, np.float32)) for i, size in enumerate(sizes)]
    return encode(Conversation((human(*clips, text),)), small.tokenizer(), generate=True, **options)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(321, 40_000), max_size=3), min_size=1, max_size=3), st.sampled_from(["hf", "vllm"])
)
def test_every_patch_has_its_own_feature(rows, rule):
    examples = [example(*sizes, length_rule=rule) for sizes in rows]
    number = sum(map(len, rows)) + 1
    data = collate(examples, length=512, num_chunks=number, chunk_samples=40_000)
    assert data.audio is not None
    patches = data.tokens == small.tokenizer().audio_patch
    np.testing.assert_array_equal(patches, data.audio.slots >= 0)
    used = data.audio.slots[patches]
    assert len(set(used.tolist())) == len(used)
    per_chunk = lengths.adaptor_frames(40_000)
    flat = [size for sizes in rows for size in sizes]
    assert data.audio.lengths.tolist() == [*flat, 0]
    for i, size in enumerate(flat):
        mine = used[(used >= i * per_chunk) & (used < (i + 1) * per_chunk)]
        assert mine.tolist() == list(range(i * per_chunk, i * per_chunk + lengths.audio_tokens(size, rule)))
    for chunk, size in zip(data.audio.samples, [*flat, 0], strict=True):
        assert not np.any(chunk[size:]) and np.all(chunk[:size] != 0)


def test_long_clips_become_chunks_in_a_row():
    ours = example(25 * 16000 * 2 + 16000)
    assert [len(c) for c in ours.chunks] == [400_000, 400_000, 16_000]
    assert [count for _, count in ours.rendered.spans] == [313, 313, 13]
    assert ours.audio_tokens == 639


def test_text_alone_makes_a_batch_without_sound():
    data = collate([example()], length=64, num_chunks=0, chunk_samples=0)
    assert data.audio is None and data.segment_ids.sum() == example().num_tokens


def test_nothing_is_cut():
    with pytest.raises(ValueError, match=r"row 0 has .* tokens, the batch has room for 16"):
        collate([example(16000)], length=16, num_chunks=1, chunk_samples=16000)
    with pytest.raises(ValueError, match="a chunk of 16000 samples does not fit 1 chunks of 8000"):
        collate([example(16000)], length=64, num_chunks=1, chunk_samples=8000)
    with pytest.raises(ValueError, match="does not fit 1 chunks"):
        collate([example(16000, 16000)], length=128, num_chunks=1, chunk_samples=16000)


def test_a_clip_without_a_token_is_refused():
    with pytest.raises(AudioError, match=r"0\.020 s"):
        example(320)


def test_buckets():
    assert [bucket(size, (4, 8)) for size in (0, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ValueError, match="9 is more than the largest bucket 8"):
        bucket(9, (4, 8))
