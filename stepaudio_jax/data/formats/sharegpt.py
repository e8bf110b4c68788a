"""ShareGPT, as LLaMA-Factory reads it: `conversations` of from and value, the sounds in a column beside them.

    {"conversations": [{"from": "human", "value": "<audio>How many tones?"}, {"from": "gpt", "value": "Two."}],
     "audios": ["clips/17.wav"], "system": "Be brief.", "tools": "[…]"}

A pair to prefer by ends in the human's turn, and has the replies beside it:

    {"conversations": […], "chosen": {"from": "gpt", "value": "Two."}, "rejected": {"from": "gpt", "value": "One."}}

Other columns are kept in `extra`. (github.com/hiyouga/LLaMA-Factory, data/README.md.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.fields import field
from stepaudio_jax.data.formats.messages import Names
from stepaudio_jax.data.sounds import Clips
from stepaudio_jax.text import Conversation

NAMES = Names("conversations", role="from", content="value")


def read(record: Mapping[str, Any], sounds: Clips) -> tuple[Conversation, Conversation | None]:
    """(dialogue, the same with the worse reply or None). Raises DialogueError or AudioError."""
    names = _names(record.get("conversations"))
    if record.get("chosen") is None and record.get("rejected") is None:
        return messages.dialogue(record, sounds, (), names), None
    pair, literal = ("chosen", "rejected"), not messages.has_sound(record)
    conversation = messages.dialogue(record, sounds, pair, names)
    better, worse = (
        messages.turns([field(record, column, dict)], [], sounds, names._replace(column=column), literal=literal)[0]
        for column in pair
    )
    conversation = Conversation((*conversation.turns, better), conversation.tools, conversation.extra)
    return conversation, messages.ending_in(conversation, worse, "rejected")


def _names(conversations: Any) -> Names:
    """Some data sets have OpenAI's role and content in the same column."""
    first = conversations[0] if isinstance(conversations, list) and conversations else None
    is_openai = isinstance(first, Mapping) and first.get("from") is None and first.get("role") is not None
    return Names("conversations") if is_openai else NAMES
