"""Answers in words: by hand, and forms of one text by hypothesis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.scoring.words import is_right

WORDS = st.text(st.sampled_from("bcdXYZ019äöÅß你好éñ"), min_size=1, max_size=6)
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("The  dog.", "dog", 1),
        ("**Dog**", "a dog", 1),
        ("ＤＯＧ", "dog", 1),
        ("“straße”", "STRASSE", 1),
        ("Paris", ["London", "paris"], 1),
        ("7", 7, 1),
        ("dog", b"dog", 1),
        ("dog", np.array(["cat", "dog"]), 1),
        ("狗。", "狗", 1),
        ("a", "A", 1),
        ("cat", "dog", 0),
        ("dog cat", "dog", 0),
        ("", "dog", 0),
        ("!", "?", 0),
        ("?", "?", 1),
        ("-5", "5", 0),
    ],
)
def test_words(answer, truth, right):
    assert is_right(answer, truth) == right


@given(PHRASES, PHRASES)
def test_words_forgives_case_spaces_and_ends_only(truth, other):
    dressed = f' "{truth.swapcase()}". '.replace(" ", "\t ")
    assert is_right(dressed, truth)
    assert is_right(other, truth) == (other.casefold() == truth.casefold())


@pytest.mark.parametrize("truth", ["", " ", None, [], ["dog", ""]])
def test_a_blank_truth_is_an_error_and_no_answer(truth):
    with pytest.raises(ValueError, match="truth: expected an answer"):
        is_right("", truth)


@pytest.mark.parametrize(
    "reply, right",
    [
        ("The answer is dog.", True),
        ("答案是dog。", True),
        ("\\boxed{\\text{dog}}", True),
        ("\\boxed{} The answer is dog.", True),
        ("The answer is dog. No, the answer is not dog.", False),
        ("The answer is dog. Dog is wrong.", False),
        ("The answer is hot dog.", False),
        ("The answer is dog or cat.", False),
        ("It may well be a dog that barks.", False),
        ("\\boxed{cat} dog", False),
    ],
)
def test_what_a_reply_calls_its_answer(reply, right):
    assert is_right(reply, "dog") == right
