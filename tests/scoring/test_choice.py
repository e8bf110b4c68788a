"""Multiple choice: statements by hand, and forms of options and of truths by hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.scoring.choice import is_right

WORDS = st.text(st.sampled_from("bcdXYZ019äöÅß你好éñ"), min_size=1, max_size=6)
CHOICES = ["cat", "dog", "hot dog", "C major"]


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B. dog", "B"),
        ("b) dog", "B"),
        ("The answer is B.", "B"),
        ("the answer is: (b)", "B"),
        ("**Answer:** B", "B"),
        ("\\boxed{B}", "B"),
        ("So \\boxed{\\text{dog}}.", "B"),
        ("答案是B。", "B"),
        ("选Ｂ", "B"),
        ("dog", "B"),
        ("The dog.", "B"),
        ("It sounds like a dog barking", "B"),
        ("A dog.", "B"),
        ("The answer is a dog.", "B"),
        ("It is a hot dog.", "C"),
        ("The answer is the C major chord.", "D"),
        ("Option B is the correct answer.", "B"),
        ("B is right.", "B"),
        ("Answer: B\nbecause dogs bark and cats meow", "B"),
        ("The answer is B. A is wrong.", "B"),
        ("The answer is A. No, the answer is B.", "B"),  # the last statement
        ("Option B is right. Option A is wrong.", "B"),
        ("It is a dog, not a cat.", "B"),
        ("The answer is A or B", None),  # two at once
        ("A B C D", None),
        ("B. cat", None),
        ("The answer is B, the cat", None),
        ("dog (A)", None),
        ("It could be a cat or a dog", None),
        ("The answer is not A.", None),
        ("I think so", None),
        ("E", None),
        ("", None),
    ],
)
def test_choice(answer, letter):
    for truth in "ABCD":
        assert is_right(answer, truth, CHOICES) == (letter == truth)


LETTER_FORMS = ["{0}", "({0})", "{0}.", "{0}: {1}", "({0}) {1}", "The answer is {0}.", "Answer: {0}) {1}", "**{0}**"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(WORDS.map("the {} sound".format), min_size=2, max_size=6, unique_by=str.casefold),
    st.data(),
    st.sampled_from([*LETTER_FORMS, "{1}", "The answer is {1}.", "I hear {1}."]),
)
def test_an_answer_means_its_option_in_any_order(texts, data, form):
    index = data.draw(st.integers(0, len(texts) - 1))
    letter, text = "ABCDEF"[index], texts[index]
    as_mapping = dict(zip("ABCDEF", texts, strict=False))
    for truth in (letter, text, index, np.int64(index), f"{letter}. {text}"):
        for choices in (texts, as_mapping, [f"({each}) {text}" for each, text in as_mapping.items()]):
            assert is_right(form.format(letter, text), truth, choices)
    other = (index + 1) % len(texts)
    assert not is_right(form.format(letter, text), other, texts)


def test_choices_that_are_letters_must_not_be_confused():
    notes = {"A": "B", "B": "A"}
    assert not is_right("The answer is B", "(A) B", notes)  # the letter, or the note?
    with pytest.raises(ValueError, match="expected one of the options"):
        is_right("B", "B", notes)


@pytest.mark.parametrize(
    "truth, choices, complaint",
    [
        ("E", CHOICES, "truth: expected one of the options .A: cat, .* found 'E'"),
        ("B. cat", CHOICES, "truth: expected"),
        (4, CHOICES, "truth: expected"),
        (-1, CHOICES, "truth: expected"),
        (1, ["1", "2"], "truth: expected"),  # the second, or "1"?
        ("A", {"AB": "x"}, "choices: expected the options"),
        (None, None, "truth: expected"),
        ("A", ["x", "X."], "choices: expected different"),
        ("A", [], "choices: expected the options"),
        ("A", "cat", "choices: expected the options"),
        ("A", [1, 2], "choices: expected the options"),
        ("A", [str(n) for n in range(27)], "choices: expected the options"),
    ],
)
def test_bad_records_of_choices_are_errors(truth, choices, complaint):
    with pytest.raises(ValueError, match=complaint):
        is_right("A", truth, choices)


NUMBERS = ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "reply", ["2.5", "-2", "2,000", "2:30", "2%", "1/2", ".2", "2^3", "22", "2nd", "2万", "2-3", "at least 2"]
)
def test_an_option_that_is_a_number_is_not_found_inside_another(reply):
    assert not is_right(reply, "B", NUMBERS)
    assert not is_right(f"The answer is {reply}.", "B", NUMBERS)


def test_an_option_with_a_unit_is_not_found_inside_another():
    assert not is_right("The answer is 2.5 s", "A", ["5 s", "10 s"])
    assert is_right("The answer is 5 s", "A", ["5 s", "10 s"])


@pytest.mark.parametrize(
    "texts",
    [
        ["A、狗", "B、猫"],
        ["A：狗", "B：猫"],
        ["A．狗", "B．猫"],
        ["（A）狗", "（B）猫"],
        ["【A】狗", "【B】猫"],
        ["A 狗", "B 猫"],
        ["A. 狗", "B. 猫"],
        ["A) 狗", "B) 猫"],
        ["A - 狗", "B - 猫"],
    ],
)
def test_options_are_stripped_of_their_own_marks(texts):
    for reply in ("猫", "B", "B、猫", "答案是猫", texts[1]):
        assert is_right(reply, "B", texts)
        assert not is_right(reply, "A", texts)


def test_marks_that_are_part_of_the_options_stay():
    texts = ["A minor", "B minor"]  # without their letters they would be one
    assert is_right("B minor", "B", texts) and not is_right("A minor", "B", texts)
