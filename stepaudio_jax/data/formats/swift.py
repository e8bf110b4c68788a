"""ms-swift: `messages` with text in them, the sounds in a column beside them.

    {"messages": [{"role": "user", "content": "<audio>How many tones?"},
                  {"role": "assistant", "content": "<think>I hear…</think>Two."}],
     "audios": ["clips/17.wav"], "rejected_response": "One.", "difficulty": 3}

Columns: `messages`, `audios`, `system`, `tools`, `rejected_response` (the last reply in a worse version), or in its
place `rejected_messages` with `rejected_audios`; all others are kept in `extra`. A message may have `loss` (true or
false; by default the recipe's rule) and `reasoning_content`. LLaMA-Factory's OpenAI form is the same without rejected
replies. (github.com/modelscope/ms-swift, docs: Customization/Custom-dataset.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.fields import field
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Conversation

COLUMNS = ("messages", "audios", "rejected_response", "rejected_messages", "rejected_audios")


def read(record: Mapping[str, Any], sounds: Sounds) -> tuple[Conversation, Conversation | None]:
    """(dialogue, the same with the worse reply or None). Raises DialogueError or AudioError."""
    conversation = messages.dialogue(record, sounds, COLUMNS)
    if record.get("rejected_messages") is not None:
        names = {"column": "rejected_messages", "audios": "rejected_audios"}
        rejected = messages.dialogue(record, sounds, COLUMNS, **names)
        messages.check_different(conversation, rejected, names["column"])
        return conversation, rejected
    if record.get("rejected_response") is not None:
        column = "rejected_response"
        text = field(record, column, str)
        (worse,) = messages.turns([{"role": "assistant", "content": text}], [], sounds, column)
        return conversation, messages.ending_in(conversation, worse, column)
    return conversation, None
