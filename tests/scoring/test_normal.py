"""The normal form of a text, by hand; and that no text takes long to read."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.scoring import choice, maths, number, words
from stepaudio_jax.scoring.normal import LONGEST_READ, flat, last_boxed, normalise, plain

CHOICES = ["cat", "dog", "hot dog", "C major"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("２½小时", "2 1/2小时"),
        ("x²+1", "x^2+1"),
        ("1.5×10⁻³", "1.5×10^{-3}"),
        ("−5 – 5–7", "-5 – 5–7"),
        ("1\u202f234\u00a0567", "1,234,567"),
        ("12，345元", "12,345元"),
        ("选B，A错误", "选B, A错误"),
        ("**73** and *x* and __y__", "73 and x and y"),
        ("9**9**9", "9**9**9"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("x_1 + x_2", "x_1 + x_2"),
        ("- 7\n* 8\n• 9", "7\n8\n9"),
        ("1. 7\n2. 8", "7\n8"),
        ("7. That many.", "7. That many."),
        ("-7", "-7"),
        ("# A\n> B", "A\nB"),
        ("#### 7", "#### 7"),
        ("~~5~~ 6", "6"),
        ("`7`", "7"),
        ("a\u200bb", "ab"),
    ],
)
def test_plain(text, expected):
    assert plain(text).strip() == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\\frac{3}{4}", "3/4"),
        ("\\frac34", "3/4"),
        ("2\\frac{1}{2}", "2 1/2"),
        ("\\text{(B) \\textbf{cat}}", "(B) cat"),
        ("1\\,234", "1,234"),
        ("$7$", "7"),
        ("\\$5.00", "$5.00"),
        ("90^\\circ", "90°"),
        ("1 \\\\ 2", "1 \\\\ 2"),
    ],
)
def test_flat(text, expected):
    assert flat(text).strip() == expected


def test_normalise_keeps_what_tells_texts_apart():
    assert normalise("The **Dog**.") == "dog" and normalise("?") == "?" and normalise(".5") == ".5"


def test_the_last_box():
    assert last_boxed("no box") is None and last_boxed("\\boxed{") is None and last_boxed("}{\\boxed{}") == ""
    assert last_boxed("\\boxed{a} \\boxed {\\frac{1}{2}\\}} {x}") == "\\frac{1}{2}\\}"
    assert last_boxed("\\boxed{a} \\boxed{b") == "a"


# No text stops a scorer


def score(name, text):
    """As the rewards do, but for sympy, which has limits of its own."""
    if name == "maths":
        return maths.expression_stated(text)
    if name == "choice":
        return choice.is_right(text, "dog", CHOICES)
    return number.is_right(text, "7") if name == "number" else words.is_right(text, "dog")


NAMES = ["choice", "maths", "number", "words"]


@settings(max_examples=50, deadline=None)
@given(st.text(), st.sampled_from(NAMES))
def test_any_text_is_read(text, name):
    assert score(name, text) in (True, False) or name == "maths"


PIECES = """answer |answer A. |(A)|A. |hot |dog | |1,11|1,|9|1/|\\frac{|\\boxed{|\\boxed{1}|-|³|$ |1e|1 1/1 |答案
B.|*|**|_|~~|`|# |> |1. |\\text{|一|百分之|one hundred |不是|not |$1$|{|(|\\(|x^|<answer>|1 |1 234|A、|A or |，"""
PIECES = [*PIECES.replace("\n", "|").split("|"), "|", "\n", "是\n"]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_takes_long(name):
    for piece in PIECES:
        begin = time.process_time()
        score(name, piece * (LONGEST_READ // (2 * len(piece))))
        assert time.process_time() - begin < 2.0, piece  # squares of it would take minutes
