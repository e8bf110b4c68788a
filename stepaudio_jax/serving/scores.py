"""Log-probabilities of tokens in OpenAI's two shapes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from stepaudio_jax.inference import Completion, TokenScore
from stepaudio_jax.text import Tokenizer

LEAST = -9999.0
"""What OpenAI's protocol says for a token that is out of the question; JSON has no −infinity."""


class TokenNames:
    """Tokens as text and as bytes: a token may be part of a letter, whose text is U+FFFD."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.text = functools.lru_cache(maxsize=1 << 16)(self._text)

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special=False)

    def bytes(self, token_id: int) -> list[int]:
        name = self._tokenizer.backend.id_to_token(token_id) or ""
        if name and all(letter in _BYTES for letter in name):
            return [_BYTES[letter] for letter in name]
        return list(self.text(token_id).encode())  # a special string


def scores_of(completion: Completion, start: int = 0) -> list[TokenScore]:
    """The scores of a reply's tokens from `start` on."""
    tops = completion.top_log_probs or ((),) * len(completion.token_ids)
    rows = zip(completion.token_ids, completion.log_probs, tops, strict=True)
    return [TokenScore(*row) for row in rows][start:]


def chat_logprobs(scores: Iterable[TokenScore], names: TokenNames) -> dict[str, Any]:
    """Of a chat completion's choice. A token that was forced was certain: 0."""

    def entry(token_id: int, log_prob: float | None) -> dict[str, Any]:
        return {"token": names.text(token_id), "logprob": _finite(log_prob), "bytes": names.bytes(token_id)}

    return {
        "content": [
            entry(score.token_id, score.log_prob) | {"top_logprobs": [entry(*top) for top in score.top]}
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(scores: Sequence[TokenScore], names: TokenNames, offset: int) -> dict[str, Any]:
    """Of a completion's choice; `offset` is where in the text the first token begins."""
    texts = [names.text(score.token_id) for score in scores]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [_finite(score.log_prob) for score in scores],
        "top_logprobs": [{names.text(token): _finite(value) for token, value in score.top} for score in scores],
        "text_offset": offsets[:-1],
    }


def _finite(log_prob: float | None) -> float:
    return 0.0 if log_prob is None else max(log_prob, LEAST)


def _byte_names() -> dict[str, int]:
    """GPT-2's names of bytes in a byte-level vocabulary: printable ones are themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    names = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
    assert set(names) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return names


_BYTES = _byte_names()
