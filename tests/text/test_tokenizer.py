"""Loading, special ids, and text that arrives token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio_jax.text import TextStream, Tokenizer, TokenizerError
from tests.text.conftest import SPECIALS, byte_level


def test_special_ids_are_looked_up_by_string(tokenizer):
    assert tokenizer.backend.id_to_token(tokenizer.end_of_turn) == "<|EOT|>"
    assert tokenizer.backend.id_to_token(tokenizer.audio_patch) == "<audio_patch>"
    assert tokenizer.vocab_size == 256 + len(SPECIALS)


def test_a_missing_special_string_is_named():
    with pytest.raises(TokenizerError, match="<audio_patch>"):
        Tokenizer(byte_level(SPECIALS[:-1]))


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_file_reads_back(tokenizer, tmp_path):
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("Hé?") == tokenizer.encode("Hé?")


@given(st.text(max_size=30))
def test_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "a", " "]), max_size=8).map("".join))
def test_special_strings_in_text_stay_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert max(ids, default=0) < 256
    assert tokenizer.decode(ids, skip_special=False) == text


def test_special_strings_are_special_when_allowed(tokenizer):
    assert tokenizer.encode("a<|EOT|>", allow_special=True)[-1] == tokenizer.end_of_turn


@given(st.text(max_size=20), st.data())
def test_a_stream_gives_the_whole_text_and_never_half_a_character(tokenizer, text, data):
    stream, ids, out = TextStream(tokenizer), tokenizer.encode(text), ""
    while ids:
        size = data.draw(st.integers(1, 3))
        piece = stream.push(ids[:size])
        ids = ids[size:]
        assert "\ufffd" not in piece or "\ufffd" in text
        out += piece
    assert out + stream.flush() == text
