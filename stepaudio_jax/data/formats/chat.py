"""Messages whose content is a list of parts (Hugging Face, OpenAI), and TRL's split of prompt and reply.

    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "clips/17.wav"},
                                               {"type": "text", "text": "How many tones?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Two."}], "reasoning_content": "I hear…"}]}

What a part may be is in parts.py; text in place of the list will do, too. TRL writes prompt and reply apart, or two
replies of which one is preferred, each a list of messages:

    {"prompt": […], "completion": […]}
    {"prompt": […], "chosen": […], "rejected": […]}
    {"chosen": […], "rejected": […]}                          each with the prompt at its head

or each of them as text. LLaMA-Factory has the prompt in `messages`, and one message as a reply. Other columns are kept
in `extra`. (huggingface.co/docs: transformers, chat templates; trl, dataset formats. platform.openai.com/docs: chat
completions.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.fields import DialogueError, objects
from stepaudio_jax.data.formats.messages import Names
from stepaudio_jax.data.sounds import Clips
from stepaudio_jax.text import Conversation


def has_parts(value: Any) -> bool:
    """Whether some message's content is a list."""
    return isinstance(value, list) and any(isinstance(m, Mapping) and isinstance(m.get("content"), list) for m in value)


def read(record: Mapping[str, Any], sounds: Clips) -> tuple[Conversation, Conversation | None]:
    """(dialogue, the same with the worse reply or None). Raises DialogueError or AudioError."""
    if record.get("chosen") is None and record.get("completion") is None:
        return messages.dialogue(record, sounds, ()), None
    if record.get("chosen") is None:
        if record.get("label") is False:
            raise DialogueError("label: expected a completion to be learned from, or a pair, found a bad one")
        return _answered(record, sounds, "completion", {"completion"}), None
    chosen, rejected = (_answered(record, sounds, column, {"chosen", "rejected"}) for column in ("chosen", "rejected"))
    messages.check_different(chosen, rejected, "rejected")
    return chosen, rejected


def _answered(record: Mapping[str, Any], sounds: Clips, column: str, used: set[str]) -> Conversation:
    """A column of messages, or one, or text, behind the prompt; messages of a whole dialogue begin with it."""
    reply, asked = record.get(column), "prompt"
    if isinstance(reply, str | Mapping):
        reply = [{"role": "assistant", "content": reply} if isinstance(reply, str) else reply]
    first = reply[0] if isinstance(reply, list) and reply else None
    is_whole = isinstance(first, Mapping) and first.get("role") != "assistant"
    prompt = record.get(asked)
    if isinstance(prompt, str) and not is_whole:
        prompt = [{"role": "user", "content": prompt}]
    elif prompt is None and not is_whole and record.get("messages") is not None:  # LLaMA-Factory
        asked, prompt = "messages", record["messages"]
    if prompt is None and isinstance(record.get(column), str):
        raise DialogueError(f"{column}: expected a column prompt beside a reply of text, or messages")
    record = {**record, column: reply, asked: prompt}
    if prompt is None or isinstance(prompt, str):
        if any(isinstance(m, Mapping) and m.get("content") == prompt for m in objects(record, column)):
            used = {*used, asked}  # it is in the dialogue too
        return messages.dialogue(record, sounds, used, Names(column))
    before = messages.dialogue(record, sounds, used, Names(asked))
    literal = not messages.has_sound(record)
    answer = messages.turns(objects(record, column), [], sounds, Names(column), literal=literal)
    return Conversation((*before.turns, *answer), before.tools, before.extra)
