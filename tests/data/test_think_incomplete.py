"""Think-incomplete samples: a prefix of the reasoning, the whole response, by seed alone."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stepaudio_jax.data.samples import Sample
from stepaudio_jax.data.think_incomplete import LeftOut, ThinkIncomplete, think_incomplete
from stepaudio_jax.text import Conversation, assistant, human

paragraph = st.text("abc .\n", min_size=1, max_size=12).filter(lambda p: p.strip() and "\n" not in p.strip())


def sample(think: str | None, reply: str = "It is a piano, played slowly.") -> Sample:
    return Sample(Conversation((human("q"), assistant("old", think="kept"), human("r"), assistant(reply, think=think))))


def think_of(cut: Sample) -> str | None:
    return cut.conversation.turns[-1].think


@pytest.mark.parametrize("think, prefixes", [
    ("one\ntwo\n\nthree", {None, "one\ntwo", "one\ntwo\n\nthree"}),
    ("\n a\n \t\n\nb\n\n", {None, "a", "a\n \t\n\nb"}),
])  # fmt: skip
def test_paragraphs_end_at_blank_lines(think, prefixes):
    assert {think_of(think_incomplete(sample(think), 0, index, 0)) for index in range(100)} == prefixes


@given(st.lists(paragraph.map(str.strip), min_size=1, max_size=5), st.integers(0, 2**32), st.integers(0, 10**9))
def test_a_prefix_of_the_reasoning_and_the_whole_response(paragraphs, seed, index):
    source = sample("\n\n".join(paragraphs))
    cut = think_incomplete(source, seed, index, 0)
    prefixes = ["\n\n".join(paragraphs[:k]) or None for k in range(len(paragraphs) + 1)]
    assert think_of(cut) in prefixes
    assert cut.conversation.turns[:-1] == source.conversation.turns[:-1]
    assert cut.conversation.turns[-1].parts == source.conversation.turns[-1].parts
    assert cut.conversation.turns[-1].complete
    assert think_of(think_incomplete(source, seed, index, 0)) == think_of(cut)


def test_every_length_is_as_likely():
    source = sample("a\n\nb\n\nc")
    for number in (range(3000), [0] * 3000):  # over samples, and over copies of one
        drawn = Counter(think_of(think_incomplete(source, 1, i, copy)) for copy, i in enumerate(number))
        assert set(drawn) == {None, "a", "a\n\nb", "a\n\nb\n\nc"}
        assert all(abs(count - 750) < 5 * (3000 * 0.25 * 0.75) ** 0.5 for count in drawn.values())


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_seeds_and_copies_differ(seed, other):
    assume(seed != other)
    source = sample("\n\n".join("abcdefgh"))

    def cuts(seed, copies):
        return [[think_of(s) for s in ThinkIncomplete(seed, copies)(source, index)] for index in range(40)]

    assert cuts(seed, 1) != cuts(other, 1)
    pairs = cuts(seed, 2)
    assert [pair[:1] for pair in pairs] == cuts(seed, 1) and any(a != b for a, b in pairs)


MARKDOWN = [
    "# Title\nText", "First:\n- one\n- two", "* one", "1. one\n2. two", "2) two", "It is **loud**.", "Say `x`.",
    "```\ncode\n```", "See [this](http://a).", "| a | b |", "> quoted", "Then\n\n---\n\nmore",
    r"So \(x\).", "An *odd* one.",
]  # fmt: skip
PLAIN = [
    "It is a piano.", "In 2019. Then 3 - 4 people sang, 2 * 3 = 6.", "A well-known tune (No. 5), #1 in the charts.",
    "5 > 3. Snake_case_word. What? Yes!", "First, a bell.\n\nThen a dog.", "钢琴声。",
]  # fmt: skip


@pytest.mark.parametrize("reply", MARKDOWN)
def test_markdown_is_left_out(reply):
    with pytest.raises(LeftOut, match="Markdown"):
        think_incomplete(sample("a", reply), 0, 0, 0)


@pytest.mark.parametrize("reply", PLAIN)
def test_speech_is_not(reply):
    think_incomplete(sample("a", reply), 0, 0, 0)


@pytest.mark.parametrize("think", [None, "", " \n"])
def test_no_reasoning_is_left_out(think):
    with pytest.raises(LeftOut, match="no reasoning"):
        think_incomplete(sample(think), 0, 0, 0)


def test_no_worse_reply_is_left():
    """A pair's worse reply was written with other reasoning."""
    source = sample("one\n\ntwo")
    cut = think_incomplete(dataclasses.replace(source, rejected=source.conversation), 0, 0, 0)
    assert cut.rejected is None
