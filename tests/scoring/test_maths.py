"""Mathematics: what math-verify publishes as its own tests, what is known against it, and what replies may not do."""

import pytest

from stepaudio_jax.scoring.expression import canonical, spans, too_large
from stepaudio_jax.scoring.maths import Verdict, judge

PUBLISHED = [  # gold, said, equal: from the tests of Math-Verify
    ("7425000", "7,425,000", 1),
    ("1000", "1000.0", 1),
    ("0.4", ".4", 1),
    ("1000.99", "$1,000.99", 1),
    ("10/9", "\\frac{10}{9}", 1),
    ("-10/9", "-\\frac{10}{9}", 1),
    ("$[0,1)$", "$[0,1)$", 1),
    ("$[0,9)$", "$[0,1)$", 0),
    ("$(0,9)$", "$[0,9)$", 0),
    ("$9$", "Answer \\[ 9 \\]", 1),
    ("$9$", "Answer $$ \n 9 \n $$", 1),
    ("$10$", "Answer \\( (9+1) \\)", 1),
    ("$1/3$", "$\\frac13 $", 1),
    ("$1/3$", "$\\frac{1}{3} \\text{meters}$", 1),
    ("$1/3$", "$k = \\frac{1}{3}$", 1),
    ("$\\sqrt{3}$", "$\\sqrt3 $", 1),
    ("$28\\%$", "28 %", 1),
    ("$0.28$", "28", 0),
    ("$2-2p$", "Since $x<2$, $|x-2|=2-x$. If $2-x=p$, then $x=2-p$. Thus $x-p=\\boxed{2-2p}$.", 1),
    ("$n=1, 2, 3$", "$n=1, 2, 3$", 1),
    ("$n=2, 3, 4$", "$n=1, 2, 3$", 0),
    ("$1 - \\frac{1}{\\mathrm{e}}$", "$1 + \\frac{1}{\\mathrm{e}}$", 0),
    ("$\\pm 2021$", "${-2021, 2021}$", 1),
    ("$\\pm 2021$", "$2021$", 0),
    ("$19, 46, and 82$", "$19, 46, \\text{ and } 82$", 1),
]


@pytest.mark.parametrize("gold, said, equal", PUBLISHED)
def test_maths_as_published(gold, said, equal):
    assert (judge(said, gold) is Verdict.RIGHT) == equal


@pytest.mark.parametrize(
    "truth, answer, right",
    [
        ("x^2+1", "1 + x^2", 1),  # without any mark-up
        ("1", "x^2 + 1", 0),
        ("\\sqrt{2}/2", "The answer is 1/sqrt(2).", 1),
        ("5", "\\boxed{4} and then \\boxed{5}", 1),  # the last box
        ("4", "\\boxed{4} and then \\boxed{5}", 0),
        ("5", "\\boxed{\\boxed{5}}", 1),
        ("\\frac{1}{2}", "so it is 0.5", 1),
        (0.5, "$\\frac{1}{2}$", 1),
        (["3", "5"], "\\boxed{5}", 1),
        ("5", "", 0),
        ("5", "no idea", 0),
        ("5", "\\boxed{}", 0),
        ("5", "\\boxed{" + "1+" * 5000 + "1}", 0),
    ],
)
def test_maths(truth, answer, right):
    assert (judge(answer, truth) is Verdict.RIGHT) == right


def test_a_truth_without_an_expression_is_an_error():
    with pytest.raises(ValueError, match="truth: expected a mathematical expression"):
        judge("5", "\\boxed{}")


@pytest.mark.parametrize(
    "said, truth",
    [
        ("\\boxed{\\frac{1}{2^{98}}}", "\\frac{1}{2^{99}}"),
        ("\\boxed{\\frac{1}{2006!}}", "\\frac{1}{2004!}"),
        ("\\boxed{1, 3, \\ldots, 2n-1}", "1, 2, \\ldots, n"),
        ("1+1/2+1/4+...", "1+1/2+1/4"),
        ("\\boxed{4\\sqrt(2)}", "4"),
        ("\\boxed{1:00}", "12:00"),
        ("\\boxed{\\{1, 10^{-9}\\}}", "\\{1, 10^{-10}\\}"),
        ("\\boxed{\\begin{pmatrix} 10^{-9} \\\\ 1 \\end{pmatrix}}", "\\begin{pmatrix} 10^{-10} \\\\ 1 \\end{pmatrix}"),
    ],
)
def test_what_math_verify_takes_for_equal_and_is_not(said, truth):
    assert judge(said, truth) is Verdict.WRONG


@pytest.mark.parametrize(
    "said, truth",
    [
        ("**73**", "73"),
        ("234 people\n\n✅ Final Answer: **73**", "73"),
        ("答案是5", "5"),
        ("\\boxed{3，4}", "3,4"),
        ("\\boxed{50％}", "50%"),
        ("\\boxed{90°}", "90"),
        ("\\boxed{½}", "1/2"),
        ("x²", "x^2"),
        ("\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("\\boxed{\\text{even}}", "\\text{even}"),
        ("\\boxed{\\$18.90}", "\\$18.90"),
        ("\\boxed{12:00}", "12:00"),
        ("\\boxed{1, 2, \\dots, n}", "1,2,\\ldots,n"),
    ],
)
def test_forms_of_a_right_answer(said, truth):
    assert judge(said, truth) is Verdict.RIGHT


LARGE = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "10^{10^{10^{10}}}",
    "(((9!)!)!)!",
    "(10^{10})!",
    "99999999999!",
    "2^{1000000000}",
]


@pytest.mark.parametrize("expression", LARGE)
def test_what_is_too_large_is_wrong_and_told_apart(expression):
    assert too_large(expression)
    assert judge(rf"\boxed{{{expression}}}", "5") is Verdict.OVER_LIMITS
    assert judge(rf"\boxed{{{expression}}}", expression) is Verdict.RIGHT  # as it is written


@pytest.mark.parametrize(
    "expression", ["2^{100}", "10^6", "1/2^{98}", "2006!", "x^{12}", "2^{2^{3}}", "(n+1)!", "1.5^{2}"]
)
def test_what_is_not_too_large(expression):
    assert not too_large(expression)


@pytest.mark.parametrize(
    "broken", ["\\frac{1}{", "}{", "\\foo{x}^", "((((", "1:00", "\\int", "=", "\\left(", "x_{", "\\begin{pmatrix}"]
)
def test_what_cannot_be_read_is_wrong(broken):
    assert judge(rf"\boxed{{{broken}}}", "x+1") is Verdict.WRONG
    assert judge(f"The answer is {broken}.", "x+1") is Verdict.WRONG


def test_one_spelling_of_an_expression():
    assert canonical("2√3") == "2\\sqrt{3}" and canonical("\\dfrac12") == "\\frac{1}{2}"
    assert canonical("5 \\text{ cm}") == "5" and canonical("1\\,234") == "1234" and canonical("(1,234)") == "(1,234)"


def test_where_expressions_stand():
    text = "If x = 2, then f(x) = x^2 + 1 is 5, and $y = 3$ follows."
    assert [found for _, _, found in spans(text)] == ["x = 2", "f(x) = x^2 + 1", "5", "y = 3"]
