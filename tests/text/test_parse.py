"""The think/answer parser: whole, streamed in any pieces, and on malformed replies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.text import Reply, ThinkParser, parse_reply, split_reply


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("I hear.\n</think>\nTwo.", Reply("I hear.", "Two.", True)),
        ("\n</think>\nTwo.", Reply("", "Two.", True)),
        ("I hear and hear", Reply("I hear and hear", "", False)),
        ("", Reply("", "", False)),
        ("<think>\nI hear.</think>Two.", Reply("I hear.", "Two.", True)),
        ("I hear.</think></think>Two.", Reply("I hear.", "Two.", True)),
        ("I hear.</think>Two.</think>", Reply("I hear.", "Two.", True)),
        ("One</think>\n<think>two</think>\nThree", Reply("Onetwo", "Three", True)),
        ("a</think>The tag <think> opens.", Reply("a", "The tag <think> opens.", True)),
        ("a < b and </thin then </think>c", Reply("a < b and </thin then", "c", True)),
    ],
)
def test_replies_after_an_opened_block(text, reply):
    assert parse_reply(text) == reply


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Two.", Reply("", "Two.", True)),
        ("<think>\nI hear.\n</think>\nTwo.", Reply("I hear.", "Two.", True)),
        ("<think>\nI hear.", Reply("I hear.", "", False)),
    ],
)
def test_replies_that_open_the_block_themselves(text, reply):
    assert parse_reply(text, opened=False) == reply


pieces = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", "a", "\n", " b", "</"]), max_size=12)


@given(pieces, st.booleans())
def test_cutting_the_text_anywhere_changes_nothing(cuts, opened):
    parser = ThinkParser(opened=opened)
    out = [piece for cut in cuts for piece in parser.feed(cut)] + parser.flush()
    think, answer = ("".join(t for part, t in out if part == name).strip() for name in ("think", "answer"))
    assert Reply(think, answer, not parser.thinking) == parse_reply("".join(cuts), opened=opened)


def test_text_is_given_as_soon_as_it_cannot_be_a_tag():
    parser = ThinkParser()
    assert parser.feed("hear <") == [("think", "hear ")]
    assert parser.feed("b") == [("think", "<b")]
    assert parser.feed("</think>yes") == [("answer", "yes")]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("<think>\na\n\nb\n</think>\n\nc ", ("a\n\nb", "c")),
        (" <think>a</think>", ("a", "")),
        ("a</think>b", ("a", "b")),
        ("<think></think>b", ("", "b")),
        (" b < c ", ("", " b < c ")),
    ],
)
def test_one_think_block_at_the_head_is_split_off(text, split):
    assert split_reply(text) == split


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a", "<think> is opened and never closed"),
        ("<think>x</think>A<think>y</think>B", "another <think> behind it"),
        ("<think>x</think><think>y</think>B", "another <think> behind it"),
        ("<think>x</think>A<think>", "another <think> behind it"),
        ("<think>x</think>A</think>", "another </think> behind it"),
        ("x</think>A</think>B", "another </think> behind it"),
        ("Sure. <think>x</think>A", "after the answer has begun"),
        ("Sure. <think>x", "after the answer has begun"),
        ("<think>a<think>b</think>c", "another <think> in it"),
    ],
)
def test_any_other_tag_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        split_reply(text)
