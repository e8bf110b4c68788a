"""The rewards themselves, their registry and the counts: each sample by hand, forms of answers by hypothesis."""

import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.rl.functions  # noqa: F401  # registers "tests-half"
from stepaudio_jax.inference.types import Completion, Usage
from stepaudio_jax.rl.rewards import (
    Reward,
    Sample,
    Scored,
    find,
    names,
    register,
    registry,
    resolve,
    summarise,
    to_arrays,
)
from stepaudio_jax.rl.rewards.choice import choice
from stepaudio_jax.rl.rewards.exact import exact
from stepaudio_jax.rl.rewards.maths import maths
from stepaudio_jax.rl.rewards.number import number, stated
from stepaudio_jax.rl.rewards.text import last_boxed


def sample(answer="", truth="dog", *, think="I hear it.", complete=True, truncated=False, **extra) -> Sample:
    return Sample(think, answer, complete, truncated, truth, extra)


WORDS = st.text(st.sampled_from("bcdXYZ019äöÅß你好éñ"), min_size=1, max_size=6)
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)

# Samples


@pytest.mark.parametrize("finish, truncated", [("stop", False), ("length", True)])
def test_a_sample_of_a_completion(finish, truncated):
    usage = Usage(0.0, 0, 3, 2)
    completion = Completion("id", (1, 2), (-0.5, None), (False, True), finish, finish, "…", "think", "dog", True, usage)
    made = Sample.of(completion, "dog", {"tolerance": 1})
    assert made == Sample("think", "dog", True, truncated, "dog", {"tolerance": 1})


@pytest.mark.parametrize("name", ["exact", "choice", "number", "maths"])
def test_a_truncated_sample_has_accuracy_0(name):
    right = resolve(name).function
    answer, truth = ("7", "7") if name != "choice" else ("B", "B")
    assert right(sample(answer, truth)) == 1.0
    assert right(sample(answer, truth, truncated=True)) == 0.0


def test_a_score_is_a_value_or_an_error():
    assert Scored(0.0).kind is None and Scored(None, "hung: for long").kind == "hung"
    for value, error in ((None, None), (1.0, "hung: x"), (None, "lazy: x")):
        with pytest.raises(ValueError, match="expected"):
            Scored(value, error)


def test_fractional_rewards_survive_in_float32():
    values, valid = to_arrays([Scored(0.8), Scored(None, "died: x"), Scored(0.2), Scored(0.0)])
    assert values.dtype == np.float32 and values[0] == np.float32(0.8) and values[2] == np.float32(0.2)
    assert valid.tolist() == [True, False, True, True]
    assert to_arrays([])[0].shape == (0,)


# Exact


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
def test_exact(answer, truth, right):
    assert exact(sample(answer, truth)) == right


@given(PHRASES, PHRASES)
def test_exact_forgives_case_spaces_and_ends_only(truth, other):
    dressed = f' "{truth.swapcase()}". '.replace(" ", "\t ")
    assert exact(sample(dressed, truth)) == 1
    assert exact(sample(other, truth)) == (other.casefold() == truth.casefold())


@pytest.mark.parametrize("truth", ["", " ", None, [], ["dog", ""]])
def test_a_blank_truth_is_an_error_and_no_answer(truth):
    with pytest.raises(ValueError, match="truth: expected an answer"):
        exact(sample("", truth))


# Choice

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
        assert choice(sample(answer, truth, choices=CHOICES)) == (letter == truth)


LETTER_FORMS = ["{0}", "({0})", "{0}.", "{0}: {1}", "({0}) {1}", "The answer is {0}.", "Answer: {0}) {1}", "**{0}**"]


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
            assert choice(sample(form.format(letter, text), truth, choices=choices)) == 1
    other = (index + 1) % len(texts)
    assert choice(sample(form.format(letter, text), other, choices=texts)) == 0


def test_choices_that_are_letters_must_not_be_confused():
    notes = {"A": "B", "B": "A"}
    assert choice(sample("The answer is B", "(A) B", choices=notes)) == 0  # the letter, or the note?
    with pytest.raises(ValueError, match="expected one of the options"):
        choice(sample("B", "B", choices=notes))


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
        choice(sample("A", truth, choices=choices))


# Number


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
        ("five", None),
        ("", None),
    ],
)
def test_what_number_a_text_states(text, value):
    assert stated(text) == (None if value is None else Fraction(value))


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
    assert stated(sentence.format(text)) == value
    assert number(sample(sentence.format(text), text)) == 1
    assert number(sample(sentence.format(text), ["1234567890123", text])) == 1


def test_numbers_are_equal_or_within_a_tolerance():
    assert number(sample("0.333", "1/3")) == 0
    assert number(sample("0.333", "1/3", tolerance=0.001)) == 1
    assert number(sample("101", 100, relative_tolerance=0.01)) == 1
    assert number(sample("101.1", 100, relative_tolerance="0.01")) == 0
    assert number(sample("0.30000000000000001", 0.3)) == 0  # as written, not as a float
    assert number(sample("0.1", np.float32(0.1))) == 1
    assert [number(sample(said, "50%")) for said in ("0.5", "50 %", "50")] == [1, 1, 0]
    assert [number(sample(said, 50, percent=True)) for said in ("0.5", "50 %", "50")] == [0, 1, 1]


@pytest.mark.parametrize("truth", ["many", float("nan"), True, "", "1,2,3"])
def test_a_truth_that_is_no_number_is_an_error(truth):
    with pytest.raises(ValueError, match="truth: expected"):
        number(sample("1", truth))
    with pytest.raises(ValueError, match="tolerance: expected 0 or more"):
        number(sample("1", "1", tolerance=-1))


# Maths

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
    assert maths(sample(said, gold)) == equal


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
    assert maths(sample(answer, truth)) == right


def test_a_truth_without_an_expression_is_an_error():
    with pytest.raises(ValueError, match="truth: expected a mathematical expression"):
        maths(sample("5", "\\boxed{}"))


def test_the_last_box():
    assert last_boxed("no box") is None and last_boxed("\\boxed{") is None and last_boxed("}{\\boxed{}") == ""
    assert last_boxed("\\boxed{a} \\boxed {\\frac{1}{2}\\}} {x}") == "\\frac{1}{2}\\}"
    assert last_boxed("\\boxed{a} \\boxed{b") == "a"


# All of those that run in the caller's process


@given(st.text(), st.sampled_from(["exact", "choice", "number"]))
def test_any_text_is_right_or_wrong(text, name):
    truth = {"exact": "dog", "choice": "dog", "number": "7"}[name]
    assert resolve(name).function(sample(text, truth, choices=CHOICES)) in (0.0, 1.0)


PIECES = "answer |answer A. |(A)|A. |hot |dog | |\n|1,11|1,|9|1/|\\frac{|\\boxed{|\\boxed{1}|-|³|$ |1e|1 1/1 |答案|B."


@settings(max_examples=60)
@given(
    st.sampled_from([*PIECES.split("|"), "|"]),
    st.sampled_from(["exact", "choice", "number"]),
)
def test_no_text_takes_long(piece, name):
    truth = {"exact": "dog", "choice": "dog", "number": "7"}[name]
    begin = time.process_time()
    resolve(name).function(sample(piece * (60_000 // len(piece)), truth, choices=CHOICES))
    assert time.process_time() - begin < 2.0  # squares of it would take minutes


# Audio


@pytest.mark.parametrize(
    "answer, think, complete, truncated, value",
    [
        ("dog", "I hear barks.", True, False, 1.0),
        ("dog", " \n\t", True, False, 0.8),
        ("dog", "\u200b\u2060", True, False, 0.8),  # nothing that can be seen
        ("dog", "", True, False, 0.8),
        ("cat", "I hear barks.", True, False, 0.2),
        ("cat", "", True, False, 0.0),
        ("", "I hear ba", False, True, 0.0),
        ("dog", "I hear barks.", True, True, 0.2),
        ("dog", "I hear barks.", False, False, 0.8),
    ],
)
def test_audio(answer, think, complete, truncated, value):
    reward = resolve(Reward("audio", {"accuracy": "exact"})).function
    got = reward(sample(answer, think=think, complete=complete, truncated=truncated))
    assert np.float32(got) == np.float32(value)


def test_audio_around_any_reward_with_any_weights():
    configured = {"name": "audio", "accuracy": {"name": "number"}, "accuracy_weight": 3, "reasoning_weight": 0.5}
    assert resolve(configured).function(sample("7", "7")) == 3.5
    assert resolve(Reward("audio", {"accuracy": "tests.rl.functions:half"})).function(sample()) == 0.8 * 0.5 + 0.2
    assert resolve(Reward("audio", {"accuracy": "exact"})).cheap
    assert not resolve(Reward("audio", {"accuracy": "maths"})).cheap
    assert Reward("audio", {"accuracy": Reward("audio", {"accuracy": "exact"})}).label == "audio(audio(exact))"


# The registry


def test_names():
    assert {"audio", "choice", "code", "exact", "maths", "number"} <= set(names())
    assert find("tests.rl.functions:half") is find("tests-half")
    assert find("exact").address == "stepaudio_jax.rl.rewards.exact:exact"
    assert find("math:sqrt").name == "math:sqrt"


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("exakt", 'found "exakt"; did you mean "exact"?'),
        ("tests.rl.functions:hal", 'tests.rl.functions has no hal; did you mean "half"?'),
        ("tests.rl.nowhere:half", "module tests.rl.nowhere cannot be imported"),
        ("math:pi", "expected a function, found float"),
        ("math:", "has no name"),
        (":f", "cannot be imported"),
        (Reward("exact", {"tolerance": 1}), 'reward "exact": options: .*tolerance'),
        (Reward("audio"), 'reward "audio": options: .*accuracy'),
        (Reward("exact", seconds=0), "seconds: expected more than 0, found 0"),
        ({"accuracy": "exact"}, 'expected a "name" among its keys, found accuracy'),
        ("code", r"expected allow_code=True \(RewardRunner\), found False"),
        (Reward("audio", {"accuracy": "code"}), "expected allow_code=True"),
        (Reward("code", {"allow_code": True}), "expected allow_code=True"),  # a config's word is not the operator's
    ],
)
def test_what_cannot_be_resolved(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        resolve(name)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="a name without a colon"):
        register("a:b")
    with pytest.raises(ValueError, match=r"is stepaudio_jax[.]rl[.]rewards[.]exact:exact already"):
        register("exact")(stated)
    with pytest.raises(ValueError, match="which no import reaches"):
        register("local")(lambda sample: 0.0)
    assert "local" not in names()


def test_a_reward_of_the_program_itself_is_not_for_workers(monkeypatch):
    monkeypatch.setattr(registry, "_entries", {})
    monkeypatch.setattr(stated, "__module__", "__main__")
    register("own")(stated)
    with pytest.raises(ValueError, match='reward "own": is defined in the program itself'):
        resolve("own")
    registry._entries.clear()
    register("own", cheap=True)(stated)
    assert resolve("own").cheap


# Counts


def test_the_summary_counts_values_and_errors_by_reward_and_source():
    scored = [Scored(1.0), Scored(0.0), Scored(None, "hung: x"), Scored(None, "hung: y"), Scored(0.2), Scored(1.0)]
    audio = Reward("audio", {"accuracy": "exact"})
    found = summarise(scored, ["exact", "exact", "exact", "exact", audio, audio], ["a", "a", "a", "b", "a", "a"])
    assert [(each.reward, each.source, each.n, each.errors) for each in found] == [
        ("audio(exact)", "a", 2, {}),
        ("exact", "a", 3, {"hung": 1}),
        ("exact", "b", 1, {"hung": 1}),
    ]
    assert found[0].mean == 0.6 and found[1].mean == 0.5 and np.isnan(found[2].mean)
    assert summarise([], "exact") == []
    with pytest.raises(ValueError, match="sources: expected one for all or one for each of 6 samples, found 1"):
        summarise(scored, "exact", ["a"])


# What a worker process pays for


def test_the_rewards_import_neither_jax_nor_numpy():
    program = "import stepaudio_jax.rl.rewards.worker, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert not set(done.stdout.split()) & {"jax", "jaxlib", "flax", "numpy", "sympy", "math_verify"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("bright", True), ("The tone is bright, Anna.", True), ("Pure or bright.", False), ("", False)],
)
def test_an_answer_that_is_named_in_whatever_words(answer, right):
    assert find("named").function(Sample("", answer, True, False, "bright", {"kind": "timbre"})) == right
    with pytest.raises(ValueError, match="kind: expected one of timbre"):
        find("named").function(Sample("", answer, True, False, "bright", {"kind": "dialogue"}))
