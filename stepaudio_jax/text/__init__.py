"""Conversations, the tokenizer, the prompt template, and the think/answer parser."""

from stepaudio_jax.text.conversation import (
    Audio,
    Conversation,
    Text,
    Turn,
    assistant,
    human,
    system,
    with_placeholders,
)
from stepaudio_jax.text.parse import Reply, ThinkParser, parse_reply
from stepaudio_jax.text.prompt import Rendered, render
from stepaudio_jax.text.tokenizer import TextStream, Tokenizer, TokenizerError

__all__ = [
    "Audio",
    "Conversation",
    "Rendered",
    "Reply",
    "Text",
    "TextStream",
    "ThinkParser",
    "Tokenizer",
    "TokenizerError",
    "Turn",
    "assistant",
    "human",
    "parse_reply",
    "render",
    "system",
    "with_placeholders",
]
