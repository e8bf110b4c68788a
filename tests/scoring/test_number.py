"""Numbers: forms by hand and by hypothesis, each with its value as a fraction; what is said of them; words."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.scoring import numerals
from stepaudio_jax.scoring.number import is_right, number_stated


@pytest.mark.parametrize(
    "text, value",
    [
        ("1,000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("3/4", "3/4"),
        ("-3 / 4", "-3/4"),
        ("2 1/2", "5/2"),
        ("2½", "5/2"),
        ("50 %", "1/2"),
        ("50 percent", "1/2"),
        ("1e3", "1000"),
        ("1.5 × 10^3", "1500"),
        ("1.5×10⁻³", "3/2000"),
        ("$1.5 \\times 10^{3}$", "1500"),
        ("\\boxed{\\frac{3}{4}}", "3/4"),
        ("\\$1,000", "1000"),
        ("$5.00", "5"),
        ("−5", "-5"),
        ("１２３", "123"),
        ("٣", "3"),
        ("5 m²", "5"),
        ("The answer is 7 because 3 + 5 is 8.", "7"),
        ("The answer is x = 7.", "7"),
        ("It is 12. I am sure of this answer.", "12"),
        ("First 3, then 4, so 7", "7"),
        ("#### 1,234", "1234"),
        ("1,2,3", None),
        ("3/4/2024", None),
        ("12:30", None),
        ("1.2.3", None),
        ("2^10", None),
        ("H2O", None),
        ("1/0", None),
        ("1e999", None),
        ("9" * 401, None),
        ("five", "5"),
        ("three and a half hours", "7/2"),
        ("three and one half", "7/2"),
        ("two and three quarters", "11/4"),
        ("three quarters", "3/4"),
        ("one third", "1/3"),
        ("a half", "1/2"),
        ("three point one four", "157/50"),
        ("minus two point five", "-5/2"),
        ("a hundred and twenty", "120"),
        ("the twenty-fifth", None),
        ("3 and a half hours", "7/2"),
        ("3个半小时", "7/2"),
        ("三个半小时", "7/2"),
        ("一半", "1/2"),
        ("一千五", "1500"),
        ("一千零五", "1005"),
        ("二百五", "250"),
        ("一万二", "12000"),
        ("no number", None),
        ("", None),
    ],
)
def test_what_number_a_text_states(text, value):
    assert number_stated(text) == (None if value is None else Fraction(value))


INTEGERS = st.integers(-(10**12), 10**12)


@given(
    st.one_of(
        INTEGERS.map(lambda n: (f"{n}", Fraction(n))),
        INTEGERS.map(lambda n: (f"{n:,}", Fraction(n))),
        st.tuples(INTEGERS, st.integers(1, 999)).map(lambda p: (f"{p[0]}/{p[1]}", Fraction(*p))),
        st.tuples(INTEGERS, st.integers(-20, 20)).map(lambda p: (f"{p[0]}e{p[1]}", p[0] * Fraction(10) ** p[1])),
        st.decimals(-(10**6), 10**6, places=4).map(lambda d: (f"{d:,f} %", Fraction(d) / 100)),
        st.floats(allow_nan=False, allow_infinity=False).map(lambda x: (repr(x), Fraction(repr(x)))),
    ),
    st.sampled_from(["{}", "The answer is {}.", "Answer: **{}**", "So \\boxed{{{}}}", "3 and 4 make\n{} apples"]),
)
def test_every_form_of_a_number_is_read(form, sentence):
    text, value = form
    assert number_stated(sentence.format(text)) == value
    assert is_right(sentence.format(text), text)
    assert is_right(sentence.format(text), ["1234567890123", text])


def test_numbers_are_equal_or_within_a_tolerance():
    assert not is_right("0.333", "1/3")
    assert is_right("0.333", "1/3", tolerance=0.001)
    assert is_right("101", 100, relative_tolerance=0.01)
    assert not is_right("101.1", 100, relative_tolerance="0.01")
    assert not is_right("0.30000000000000001", 0.3)  # as written, not as a float
    assert is_right("0.1", np.float32(0.1))
    assert [is_right(said, "50%") for said in ("0.5", "50 %", "50")] == [True, True, False]
    assert [is_right(said, 50, percent=True) for said in ("0.5", "50 %", "50")] == [False, True, True]


@pytest.mark.parametrize("truth", ["many", float("nan"), True, "", "1,2,3"])
def test_a_truth_that_is_no_number_is_an_error(truth):
    with pytest.raises(ValueError, match="truth: expected"):
        is_right("1", truth)


def test_a_tolerance_below_0_is_an_error():
    with pytest.raises(ValueError, match="tolerance: expected 0 or more"):
        is_right("1", "1", tolerance=-1)


@pytest.mark.parametrize(
    "text, value",
    [
        ("答案是2", "2"),
        ("我听到2个音", "2"),
        ("答えは2です", "2"),
        ("\\boxed{2\\frac{1}{2}}", "5/2"),
        ("\\boxed{3\\dfrac{3}{4}}", "15/4"),
        ("\\frac34", "3/4"),
        ("\\boxed{1\\,234}", "1234"),
        ("\\boxed{12\\;345}", "12345"),
        ("1\u00a0234 Hz", "1234"),
        ("1\u2009234\u2009567", "1234567"),
        ("1\u202f234", "1234"),
        ("The answer is not 5 but 6.", "6"),
        ("The answer isn't 5, it's 6", "6"),
        ("The answer to 3 + 4 is 7", "7"),
        ("3+4的答案是7", "7"),
        ("5或6", None),
        ("between 5 and 7", None),
        ("at least 5", None),
        ("3 hours and 20 minutes", None),
        ("\\boxed{} 5", "5"),
        ("\\boxed{?} The answer is 5.", "5"),
        ("\\boxed{5} Wait, that's wrong. It is \\boxed{6}.", "6"),
        ("3万", "30000"),
        ("零下10度", "-10"),
        ("百分之五十", "1/2"),
        ("三分之二", "2/3"),
    ],
)
def test_what_number_a_reply_states(text, value):
    assert number_stated(text) == (None if value is None else Fraction(value))


@given(st.integers(0, 10**9 - 1))
def test_numbers_in_english_words(n):
    """Against a speller of the usual rules."""
    assert (match := numerals.ENGLISH.fullmatch(_spelled(n))) and numerals.english(match) == n


SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def _spelled(n: int) -> str:
    small, tens = SMALL.split(), TENS.split()
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10 - 2] + (f"-{small[n % 10]}" if n % 10 else "")
    for size, word in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f"{' and' if n % size < 100 else ''} {_spelled(n % size)}" if n % size else ""
            return f"{_spelled(n // size)} {word}{rest}"
    raise AssertionError


@given(st.integers(0, 99_999_999))
def test_numbers_in_chinese_characters(n):
    assert (match := numerals.CHINESE.fullmatch(_written(n))) and numerals.chinese(match) == n


def _written(n: int) -> str:
    if n >= 10_000:
        low = n % 10_000
        return _written(n // 10_000) + "万" + (("零" if low < 1000 else "") + _written(low) if low else "")
    text, gap = "", False
    for size, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // size % 10
        if digit:
            text += ("零" if gap and text else "") + "零一二三四五六七八九"[digit] + unit
        gap = digit == 0
    return text or "零"
