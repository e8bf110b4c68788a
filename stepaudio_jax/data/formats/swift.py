"""ms-swift: `messages` with text in them, the sounds in a column beside them.

    {"messages": [{"role": "user", "content": "<audio>How many tones?"},
                  {"role": "assistant", "content": "<think>I hear…</think>Two."}],
     "audios": ["clips/17.wav"], "rejected_response": "One.", "difficulty": 3}

Its older form has a question, a reply and the turns before them:

    {"query": "<audio>How many tones?", "response": "Two.", "history": [["Hi.", "Hi!"]], "audios": ["clips/17.wav"]}

Columns: `messages`, or `query`, `response` and `history`; `audios`, `system`, `tools`, `rejected_response` (the last
reply in a worse version), or in its place `rejected_messages` with `rejected_audios` (by default the same sound); all
others are kept in `extra`. A message may have `loss` (true or false; by default the recipe's rule) and reasoning
(replies.py). LLaMA-Factory's OpenAI form is the same without rejected replies. (github.com/modelscope/ms-swift, docs:
Customization/Custom-dataset.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.fields import DialogueError, called, field, optional
from stepaudio_jax.data.formats.messages import Names
from stepaudio_jax.data.sounds import Clips
from stepaudio_jax.text import Conversation


def read(record: Mapping[str, Any], sounds: Clips) -> tuple[Conversation, Conversation | None]:
    """(dialogue, the same with the worse reply or None). Raises DialogueError or AudioError."""
    if record.get("messages") is None and record.get("query") is not None:
        record = _as_messages(record)
    if record.get("rejected_messages") is not None:
        apart = record.get("rejected_audios") is not None
        names = Names("rejected_messages", "rejected_audios" if apart else "audios")
        used = {"messages", "audios", *names} - {names.role, names.content}
        conversation = messages.dialogue(record, sounds, used)
        rejected = messages.dialogue(record, sounds, used, names)
        messages.check_different(conversation, rejected, names.column)
        return conversation, rejected
    if record.get("rejected_response") is not None:
        column = "rejected_response"
        conversation = messages.dialogue(record, sounds, {column})
        reply = {"role": "assistant", "content": field(record, column, str)}
        (worse,) = messages.turns([reply], [], sounds, Names(column), literal=not messages.has_sound(record))
        return conversation, messages.ending_in(conversation, worse, column)
    return messages.dialogue(record, sounds, ()), None


def _as_messages(record: Mapping[str, Any]) -> dict[str, Any]:
    """The older form in today's."""
    said = []
    for i, pair in enumerate(optional(record, "history", list) or ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DialogueError(f"history[{i}]: expected [query, response], found {called(type(pair))}")
        said += pair
    said += [field(record, "query", str), optional(record, "response", str)]
    listed = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]
    if said[-1] is None:  # a prompt without a reply
        listed.pop()
    rest = {name: value for name, value in record.items() if name not in ("query", "response", "history")}
    return {**rest, "messages": listed}
