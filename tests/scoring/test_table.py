"""The scorers against the table of replies; what denials and decoration do to a score; what a reply may not gain by."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.scoring import choice, evaluation, maths, number, words
from tests.scoring.table import Agreement, Entry, entries

ENTRIES = entries()


def is_right(entry: Entry, reply: str) -> bool:
    """As the reward of the entry's kind does."""
    if entry.reward == "choice":
        return choice.is_right(reply, entry.truth, entry.extra.get("choices"))
    if entry.reward == "number":
        return number.is_right(reply, entry.truth, **entry.extra)
    if entry.reward == "exact":
        return words.is_right(reply, entry.truth)
    return maths.judge(reply, entry.truth) is maths.Verdict.RIGHT


@pytest.fixture
def short_limits(monkeypatch):
    """Comparisons may take less, so that what goes over the limits does so soon."""
    evaluator = evaluation.Evaluator(processor_seconds=1)
    monkeypatch.setattr(evaluation, "_shared", (os.getpid(), evaluator))
    yield
    evaluator.close()


def test_the_table_is_what_it_is_to_be():
    different = {(entry.reward, entry.truth, entry.reply, str(entry.extra)) for entry in ENTRIES}
    assert len(different) >= 600 and len(different) > 0.98 * len(ENTRIES)
    assert 0.45 < sum(entry.right for entry in ENTRIES) / len(ENTRIES) < 0.55
    assert sum(entry.mixed for entry in ENTRIES) >= 0.4 * len(ENTRIES)
    assert sum(entry.shape != "" for entry in ENTRIES) >= 100


@pytest.mark.parametrize("reward", ["choice", "number", "maths", "exact"])
def test_precision_and_recall(reward, short_limits):
    agreement, disagreements = Agreement(), []
    for entry in ENTRIES:
        if entry.reward == reward:
            said = is_right(entry, entry.reply)
            agreement.add(entry.right, float(said))
            if said != entry.right:
                disagreements.append(f"{entry.where}: {entry.reply!r}")
    assert agreement.precision == 1.0, disagreements
    assert agreement.recall >= 0.98, disagreements


# Denials

DENIALS = [
    ". It is not {}.",
    ". {} is wrong.",
    "\nNot {}.",
    ". The answer is not {}.",
    ". The answer cannot be {}.",
    ". Actually, {} is incorrect.",
    ". No, it isn't {}.",
    "\n{} is ruled out.",
    ". That is wrong.",
    "。不是{}。",
    "。{}不对。",
    "。答案不是{}。",
    "。答案不可能是{}。",
    "\n排除{}。",
    "\n{}是错的。",
    "。以上答案不对。",
]
DENIABLE = [
    entry
    for entry in ENTRIES
    if entry.right and entry.reward in ("choice", "number", "exact") and "tolerance" not in entry.extra
]


def named(entry: Entry) -> str:
    """What is denied: an option's letter, or the truth."""
    if entry.reward != "choice":
        return entry.truth
    return choice._true_letter(entry.truth, choice.read_options(entry.extra.get("choices")))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DENIABLE), st.sampled_from(DENIALS))
def test_a_denial_of_the_right_answer_makes_it_wrong(entry, denial):
    assert is_right(entry, entry.reply)
    assert not is_right(entry, entry.reply.rstrip(" .。") + denial.format(named(entry)))


@pytest.mark.parametrize("denial", DENIALS)
@pytest.mark.parametrize("reply", ["\\boxed{5}", "The answer is $5$", "答案是5", "**5**"])
def test_a_denial_of_a_right_expression_makes_it_wrong(reply, denial):
    assert maths.judge(reply, "5") is maths.Verdict.RIGHT
    assert maths.judge(reply + denial.format("5"), "5") is maths.Verdict.WRONG


def test_a_denial_in_another_spelling_makes_it_wrong():
    for reply in ("\\boxed{\\frac12}", "The answer is 1/2", "½"):
        assert maths.judge(reply, "0.5") is maths.Verdict.RIGHT
        for denial in (". It is not 1/2.", "\nNot $\\frac{1}{2}$.", "。不是½。"):
            assert maths.judge(reply + denial, "0.5") is maths.Verdict.WRONG


# Decoration

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def whole(mark):
    """Around a whole reply of one line, which has no such mark yet."""
    return lambda text: text if "\n" in text or mark[0] in text or not text.strip() else f"{mark}{text.strip()}{mark}"


def full_width(text):
    return text if re.search(r"[\\$*#`<>_~{}]", text) else text.translate(FULL_WIDTH)


DECORATIONS = {
    "bold": whole("**"),
    "italic": whole("*"),
    "underlined": whole("__"),
    "code": whole("`"),
    "bullet": lambda text: f"- {text}",
    "star": lambda text: f"* {text}",
    "round bullet": lambda text: f"• {text}",
    "numbered": lambda text: f"1. {text}",
    "quoted": lambda text: f"> {text}",
    "heading": lambda text: f"## {text}",
    "white space": lambda text: f"  \n{text} \n\n",
    "double spaces": lambda text: text.replace(" ", "  "),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "full-width spaces": lambda text: f"\u3000{text}\u3000",
    "unseen characters": lambda text: f"\u200b{text}\ufeff",
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "full width": full_width,
}


@settings(max_examples=250, deadline=None)
@given(st.sampled_from([entry for entry in ENTRIES if entry.reward != "maths"]), st.sampled_from(list(DECORATIONS)))
def test_decoration_changes_no_score(entry, decoration):
    assert is_right(entry, DECORATIONS[decoration](entry.reply)) == is_right(entry, entry.reply)


@pytest.mark.parametrize("decoration", DECORATIONS)
@pytest.mark.parametrize(
    "reply, truth", [("5", "5"), ("答案是 5", "5"), ("1/2", "0.5"), ("6", "5"), ("The answer is 7.", "7")]
)
def test_decoration_changes_no_score_of_an_expression(reply, truth, decoration):
    assert maths.judge(DECORATIONS[decoration](reply), truth) == maths.judge(reply, truth)
