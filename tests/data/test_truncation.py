"""Truncation: a prefix, never half an audio span, chunks with their spans."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data import encode
from stepaudio_jax.data.truncation import truncate
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests import small


@settings(max_examples=150)
@given(st.lists(st.integers(321, 20_000), max_size=4), st.integers(0, 12), st.integers(1, 200))
def test_a_prefix_with_whole_spans(sizes, words, length):
    parts = [part for i, size in enumerate(sizes) for part in (Audio(np.full(size, i + 1, np.float32)), "and ")]
    whole = encode(Conversation((human(*parts, "What?"), assistant("tone " * words))), small.tokenizer())
    cut = truncate(whole, length)
    n = cut.num_tokens
    assert n <= length
    np.testing.assert_array_equal(cut.rendered.token_ids, whole.rendered.token_ids[:n])
    np.testing.assert_array_equal(cut.rendered.loss_mask, whole.rendered.loss_mask[:n])
    ((start, count),) = whole.rendered.thinks
    left = [(start, min(start + count, n) - start)] if start < n else []
    assert list(cut.rendered.thinks) == left
    assert len(cut.chunks) == len(cut.rendered.spans)
    assert [len(chunk) for chunk in cut.chunks] == sizes[: len(cut.chunks)]
    ids, tokenizer = whole.rendered.token_ids.tolist(), small.tokenizer()
    # Counted from the ids alone: as many spans open as close, and one more token would be too long or open a span.
    kept = ids[:n]
    assert kept.count(tokenizer.audio_start) == kept.count(tokenizer.audio_end) == len(cut.chunks)
    assert kept.count(tokenizer.audio_patch) == cut.audio_tokens
    if n < min(length, len(ids)):
        assert ids[n] == tokenizer.audio_start
        assert tokenizer.audio_end not in ids[n:length]


def test_what_fits_is_left_alone():
    whole = encode(Conversation((human("Hi"), assistant("Hello"))), small.tokenizer())
    assert truncate(whole, whole.num_tokens) is whole
