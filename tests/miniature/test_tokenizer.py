"""The tiny tokenizer: special ids, single-token words, any text back and forth."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.miniature import KINDS, build_tokenizer, make_question
from stepaudio_jax.miniature.tokenizer import SPECIALS
from stepaudio_jax.text import Tokenizer


@pytest.fixture(scope="module")
def backend():
    return build_tokenizer(1024)


def test_special_strings_have_the_first_ids(backend):
    assert backend.get_vocab_size() == 1024
    assert [backend.token_to_id(text) for text in SPECIALS] == list(range(len(SPECIALS)))
    assert backend.token_to_id("<think>") is None


def test_it_is_made_the_same_every_time(backend):
    assert build_tokenizer(1024).to_str() == backend.to_str()


@given(st.text(max_size=40))
def test_any_text_survives(backend, text):
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(backend):
    assert backend.encode("1234").tokens == list("1234")


def test_words_of_the_small_world_are_single_tokens(backend):
    words = set()
    for i in range(300):
        question = make_question(np.random.default_rng(i), KINDS[i % len(KINDS)], sound=False)
        words |= {f" {word}" for event in question.scene.events for word in event.description.split()}
        for turn in question.conversation.turns[-1:]:
            words |= set(re.findall(r" ?[A-Za-z]+", f"{turn.think}\n{turn.text}"))
    assert len(words) > 35
    for word in words:
        assert len(backend.encode(word).ids) == 1, word


def test_plain_english_does_not_fall_apart(backend):
    text = "What can you hear in this recording, and where does it stop?"
    assert len(backend.encode(text).ids) <= 1.3 * len(text.split()) + 3
