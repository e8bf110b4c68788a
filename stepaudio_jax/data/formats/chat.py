"""Messages whose content is a list of parts (Hugging Face, OpenAI), and TRL's split of prompt and reply.

    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "clips/17.wav"},
                                               {"type": "text", "text": "How many tones?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Two."}], "reasoning_content": "I hear…"}]}

What a part may be is in parts.py; text in place of the list will do, too. TRL writes prompt and reply apart, or two
replies of which one is preferred, each a list of messages:

    {"prompt": […], "completion": […]}
    {"prompt": […], "chosen": […], "rejected": […]}
    {"chosen": […], "rejected": […]}                          each with the prompt at its head

Other columns are kept in `extra`. (huggingface.co/docs: transformers, chat templates; trl, dataset formats.
platform.openai.com/docs: chat completions.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.fields import objects
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Conversation

COLUMNS = ("messages", "audios", "prompt", "completion", "chosen", "rejected")


def has_parts(value: Any) -> bool:
    """Whether some message's content is a list."""
    return isinstance(value, list) and any(isinstance(m, Mapping) and isinstance(m.get("content"), list) for m in value)


def read(record: Mapping[str, Any], sounds: Sounds) -> tuple[Conversation, Conversation | None]:
    """(dialogue, the same with the worse reply or None). Raises DialogueError or AudioError."""
    if record.get("chosen") is None and record.get("completion") is None:
        return messages.dialogue(record, sounds, COLUMNS), None
    if record.get("chosen") is None:
        return _answered(record, sounds, "completion"), None
    chosen, rejected = _answered(record, sounds, "chosen"), _answered(record, sounds, "rejected")
    messages.check_different(chosen, rejected, "rejected")
    return chosen, rejected


def _answered(record: Mapping[str, Any], sounds: Sounds, column: str) -> Conversation:
    """A column of messages behind the prompt; where that is not a list, they begin with it."""
    if not isinstance(record.get("prompt"), list):
        return messages.dialogue(record, sounds, COLUMNS, column=column)
    prompt = messages.dialogue(record, sounds, COLUMNS, column="prompt")
    reply = messages.turns(objects(record, column), [], sounds, column)
    return Conversation((*prompt.turns, *reply), prompt.tools, prompt.extra)
