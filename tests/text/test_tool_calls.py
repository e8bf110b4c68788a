"""Calls of tools in text: what is written is read back, however it is cut, whatever its arguments say."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.text.tool_calls import Call, ToolCallParser, make_call, write_call


def read(*pieces: str) -> list[str | Call]:
    parser = ToolCallParser()
    found = [piece for text in pieces for piece in parser.feed(text)] + parser.flush()
    joined: list[str | Call] = []
    for piece in found:
        if isinstance(piece, str) and joined and isinstance(last := joined[-1], str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


SAID = st.lists(st.sampled_from(["</tool_call>", "<tool_call>", '"', "\\", "\n", "{", "}", "a", "é"])).map("".join)


@given(st.dictionaries(SAID, SAID | st.integers() | st.lists(SAID), max_size=3), st.booleans(), st.data())
def test_any_arguments_come_back(arguments, escaped, data):
    text = json.dumps(arguments, ensure_ascii=escaped)
    reply = f"Look. {write_call('f', text)} Then {write_call('g', '{}')}."
    at = data.draw(st.integers(0, len(reply)))
    expected = ["Look. ", Call("f", text), " Then ", Call("g", "{}"), "."]
    assert read(reply) == read(reply[:at], reply[at:]) == read(*reply) == expected


PIECES = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "function\nf\n", '{"a": "', '"}', "{}", '"', "\\", "\n", "<", "</tool", "x"]
    ),
    max_size=12,
)


@given(PIECES)
def test_text_is_never_lost_and_cutting_it_changes_nothing(pieces):
    text = "".join(pieces)
    found = read(text)
    assert read(*pieces) == read(*text) == found
    written = "".join(piece if isinstance(piece, str) else write_call(piece.name, piece.arguments) for piece in found)
    assert "".join(written.split()) == "".join(text.split())


CALL = write_call("g", '{"city": "Oslo"}')


@pytest.mark.parametrize(
    "broken",
    [
        '<tool_call>function\nf\n{"a": "b}</tool_call>',  # a quote that nothing closes
        '<tool_call>function\nf\n{"a": "b\nc"}</tool_call>',
        "<tool_call>function\nf\nnot json</tool_call>",
        "<tool_call>function\nf\n[1]</tool_call>",
        '<tool_call>function\nf\n\\"</tool_call>',
    ],
)
def test_a_broken_call_is_text_and_the_next_one_is_read(broken):
    assert read(f"{broken}{CALL}") == read(*f"{broken}{CALL}") == [broken, Call("g", '{"city": "Oslo"}')]


def test_long_arguments_are_looked_at_once():
    """A closing tag in a string, ten thousand times, and a token at a time: in a second, not in minutes."""
    text = write_call("f", json.dumps({"text": "</tool_call>" * 10_000}))
    start = time.perf_counter()
    assert read(*(text[i : i + 4] for i in range(0, len(text), 4))) == [Call("f", text[22:-12])]
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("two words", "{}", 'name: expected up to 64 letters, digits, "_", "." or "-", found "two words"'),
        ("f", "[1]", 'arguments: expected the JSON text of an object, found "\\[1\\]"'),
        ("f", "{", "arguments: expected the JSON text of an object"),
    ],
)
def test_what_could_not_be_read_back_is_refused(name, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        make_call(name, arguments)
