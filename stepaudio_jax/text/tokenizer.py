"""A Hugging Face `tokenizer.json`, with the special ids this model needs looked up by their strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

import tokenizers
from etils import epath

REQUIRED = {
    "end_of_text": "<|endoftext|>",
    "end_of_turn": "<|EOT|>",
    "begin_of_turn": "<|BOT|>",
    "audio_start": "<audio_start>",
    "audio_end": "<audio_end>",
    "audio_patch": "<audio_patch>",
}
REPLACEMENT = "\ufffd"


class TokenizerError(ValueError):
    """A tokenizer that cannot be used with this model; the message says what is missing."""


class Tokenizer:
    """Text to ids and back. `<think>` and `</think>` are ordinary text to it, as in the release.

    Attributes:
      end_of_text, end_of_turn, begin_of_turn, audio_start, audio_end, audio_patch: ids of the special strings.
      vocab_size: number of entries; a model's padded vocabulary may be larger.
    """

    end_of_text: int
    end_of_turn: int
    begin_of_turn: int
    audio_start: int
    audio_end: int
    audio_patch: int

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer"):
        self.backend = backend
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        missing = [text for text in REQUIRED.values() if backend.token_to_id(text) is None]
        if missing:
            raise TokenizerError(
                f"{source}: has no {', '.join(missing)}; expected a Step-Audio tokenizer "
                "(a plain Qwen2.5 one must be extended with its special strings first)"
            )
        for name, text in REQUIRED.items():
            setattr(self, name, backend.token_to_id(text))
        added = sorted((t.content for t in backend.get_added_tokens_decoder().values()), key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, added)) + ")")

    @classmethod
    def load(cls, path: epath.PathLike) -> Tokenizer:
        """Reads a tokenizer.json, or the one in a folder.

        Raises:
          TokenizerError: no such file, not a tokenizer, or special strings missing.
        """
        path = epath.Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.exists():
            raise TokenizerError(f"{path}: no such file; a checkpoint folder holds its tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises bare Exception for every kind of malformed file
            raise TokenizerError(f"{path}: not a tokenizer.json ({error})") from None
        return cls(backend, str(path))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids. Special strings in the text become ordinary characters unless `allow_special`."""
        return [token for _, encoding in self._encodings(text, allow_special) for token in encoding.ids]

    def encode_with_starts(self, text: str, *, allow_special: bool = False) -> tuple[list[int], list[int]]:
        """Token ids as `encode` gives them, and of each the character of the text that it begins with."""
        found = self._encodings(text, allow_special)
        ids = [token for _, encoding in found for token in encoding.ids]
        return ids, [at + start for at, encoding in found for start, _ in encoding.offsets]

    def _encodings(self, text: str, allow_special: bool) -> list[tuple[int, tokenizers.Encoding]]:
        """The text in as few pieces as keep special strings apart: where each begins, and what it becomes."""
        pieces = [text]
        if not allow_special and self._specials.search(text):
            pieces = []
            for i, piece in enumerate(self._specials.split(text)):
                # Odd pieces are special strings: cut after the first character, neither part is special.
                pieces += [piece[:1], piece[1:]] if i % 2 else [piece]
        found, at = [], 0
        for piece in pieces:
            if piece:
                found.append((at, self.backend.encode(piece, add_special_tokens=False)))
            at += len(piece)
        return found

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)


class TextStream:
    """Turns ids that arrive one by one into text, holding back bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._start = 0  # ids before it can no longer change the text of those after
        self._shown = 0

    def push(self, ids: Sequence[int]) -> str:
        """The text these ids add, without a character that is still incomplete."""
        self._ids += ids
        return self._advance(final=False)

    def flush(self) -> str:
        """What was held back, an incomplete character as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        whole = self._decode(self._ids[self._start :])
        if not final and whole.endswith(REPLACEMENT):
            return ""
        if len(self._ids) > self._shown:
            self._start, self._shown = self._shown, len(self._ids)
        return whole[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
