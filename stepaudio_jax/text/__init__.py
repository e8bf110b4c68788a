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
from stepaudio_jax.text.parse import Reply, ThinkParser, has_tag, parse_reply, split_reply
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
    "has_tag",
    "human",
    "parse_reply",
    "render",
    "split_reply",
    "system",
    "with_placeholders",
]
