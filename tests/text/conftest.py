"""A byte-level tokenizer with the special strings, made in memory."""

import pytest
import tokenizers

from stepaudio_jax.text import Tokenizer

SPECIALS = ["<|endoftext|>", "<|EOT|>", "<|BOT|>", "<audio_start>", "<audio_end>", "<audio_patch>"]


def byte_level(specials=tuple(SPECIALS)) -> tokenizers.Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return backend


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level())
