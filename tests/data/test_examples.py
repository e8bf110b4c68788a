"""Conversations to arrays: audio tokens and features must agree, nothing is cut."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.audio import AudioError, rows
from stepaudio_jax.audio.chunks import LONGEST_CUT
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.data import bucket, collate, encode, sound_shape
from stepaudio_jax.text import Audio, Conversation, human
from tests import small


def example(*sizes: int, text: str = "What?", **options):
    clips = [Audio(np.full(size, i + 1, np.float32)) for i, size in enumerate(sizes)]
    return encode(Conversation((human(*clips, text),)), small.tokenizer(), generate=True, **options)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.lists(st.integers(321, 40_000), max_size=3), min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from(["hf", "vllm"]),
    st.sampled_from([1, 2]),
)
def test_every_patch_finds_its_own_sound(rows, rule, parts):
    """By the slots alone: from a token to its unit, from the unit to the chunk that begins there or before."""
    examples = [[example(*sizes, length_rule=rule) for sizes in row] for row in rows]
    each, samples = sound_shape(512 * UNIT_SAMPLES, parts)
    data = collate(examples, length=512, sound_rows=each * len(rows), sound_samples=samples)
    assert data.audio is not None and data.audio.offsets is not None
    patches = data.tokens == small.tokenizer().audio_patch
    np.testing.assert_array_equal(patches, data.audio.slots >= 0)
    used = data.audio.slots[patches]
    assert len(set(used.tolist())) == len(used)
    units = samples // UNIT_SAMPLES
    for row, slots, positions in zip(examples, data.audio.slots, data.segment_ids, strict=True):
        for segment, one in enumerate(row, start=1):
            own = slots[(positions == segment) & (slots >= 0)]
            for piece, (_, count) in zip(one.chunks, one.rendered.spans, strict=True):
                mine, own = own[:count], own[count:]
                assert mine.tolist() == list(range(mine[0], mine[0] + count))
                at = divmod(int(mine[0]), units)
                assert data.audio.sizes[at] == len(piece) and data.audio.offsets[at] == 0
                begin = at[1] * UNIT_SAMPLES
                np.testing.assert_array_equal(data.audio.samples[at[0], begin : begin + len(piece)], piece)
            assert not len(own)


def test_a_row_holds_its_examples_one_after_another():
    one, two = example(16_000, text="One?"), dataclasses.replace(example(text="And two?"), source=3)
    data = collate([[one, two], []], length=64, sound_rows=2, sound_samples=40 * UNIT_SAMPLES)
    first, second = one.num_tokens, one.num_tokens + two.num_tokens
    np.testing.assert_array_equal(data.tokens[0, :first], one.rendered.token_ids)
    np.testing.assert_array_equal(data.tokens[0, first:second], two.rendered.token_ids)
    assert data.positions[0].tolist() == [*range(first), *range(second - first), *[0] * (64 - second)]
    assert data.segment_ids[0].tolist() == [1] * first + [2] * (second - first) + [0] * (64 - second)
    assert set(data.sources[0, first:second]) == {3} and not data.segment_ids[1].any()


def test_the_first_token_of_a_segment_is_never_trained():
    one = example()
    one = dataclasses.replace(one, rendered=dataclasses.replace(one.rendered, loss_mask=np.ones(one.num_tokens, bool)))
    data = collate([[one, one]], length=64, sound_rows=0, sound_samples=0)
    starts = np.flatnonzero(np.diff(data.segment_ids[0], prepend=0) > 0)
    assert len(starts) == 2 and not data.loss_mask[0, starts].any() and data.loss_mask[0, starts + 1].all()


def test_audio_tokens_are_counted_by_the_rule():
    """65 frames of 10 ms count as 65 by "hf", as 67 by "vllm": 16 or 17 pairs of pairs of them, 8 or 9 tokens."""
    counts = {rule: example(160 * 65, length_rule=rule).audio_tokens for rule in ("hf", "vllm")}
    assert counts == {"hf": 8, "vllm": 9}


def test_a_rows_sound_lies_in_its_own_share():
    """Over two shards, the rows of sound of either hold what its own row of tokens hears, counted from its first."""
    rows_of_tokens = [[example(16_000)], [example(8_000)]]
    data = collate(rows_of_tokens, length=64, sound_rows=2, sound_samples=20 * UNIT_SAMPLES, shards=2)
    assert data.audio is not None and data.audio.sizes.max(1).tolist() == [16_000, 8_000]
    assert [int(slots[slots >= 0].min()) for slots in data.audio.slots] == [0, 0]


@given(st.lists(st.integers(321, LONGEST_CUT), max_size=60), st.integers(1, 8))
def test_a_row_of_tokens_always_has_room_for_its_sound(sizes, parts):
    """First fit never fails where every unit brought a token, however a row's sound is shared."""
    units = [int(rows.units(size)) for size in sizes]
    each, samples = sound_shape(max(sum(units), 1) * UNIT_SAMPLES, parts)
    free = [samples // UNIT_SAMPLES] * each
    for need in units:
        at = next(i for i, left in enumerate(free) if left >= need)
        free[at] -= need


def test_long_clips_become_chunks_in_a_row():
    ours = example(25 * 16000 * 2 + 16000)
    assert [len(c) for c in ours.chunks] == [400_000, 400_000, 16_000]
    assert [count for _, count in ours.rendered.spans] == [313, 313, 13]
    assert ours.audio_tokens == 639


def test_text_alone_makes_a_batch_without_sound():
    data = collate([[example()]], length=64, sound_rows=0, sound_samples=0)
    assert data.audio is None and data.segment_ids.sum() == example().num_tokens


def test_nothing_is_cut():
    with pytest.raises(ValueError, match=r"row 0 has .* tokens, the batch has room for 16"):
        collate([[example(16000)]], length=16, sound_rows=1, sound_samples=16640)
    with pytest.raises(ValueError, match="16000 samples of sound need 13 units of 80 ms; 1 rows of 6 have 6 left"):
        collate([[example(16000)]], length=64, sound_rows=1, sound_samples=7680)
    with pytest.raises(ValueError, match="1 rows of 13 have 0 left"):
        collate([[example(16000, 16000)]], length=128, sound_rows=1, sound_samples=16640)
    with pytest.raises(ValueError, match="expected a multiple of 1280"):
        collate([[example(16000)]], length=128, sound_rows=1, sound_samples=16000)
    with pytest.raises(ValueError, match="rows: expected a multiple of 2 shards, found 1"):
        collate([[example()]], length=128, sound_rows=0, sound_samples=0, shards=2)


def test_a_clip_without_a_token_is_refused():
    with pytest.raises(AudioError, match=r"0\.020 s"):
        example(320)


def test_buckets():
    assert [bucket(size, (4, 8)) for size in (0, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ValueError, match="9 is more than the largest bucket 8"):
        bucket(9, (4, 8))
