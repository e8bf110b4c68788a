"""What the formats share: a list of messages to the turns of a dialogue.

A message's content is text, or a list of parts (parts.py). Clips that stand in a column beside the messages go, one
after the other, where a text says `<audio>` and where a part is of sound but names none; there must be as many places
as clips.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from stepaudio_jax.data.formats import parts
from stepaudio_jax.data.formats.fields import DialogueError, called, extra, field, objects, optional
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Audio, Conversation, Text, Turn, parse_reply, system, with_placeholders

PLACEHOLDER = "<audio>"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "human",
    "human": "human",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool_call": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
"""The names of roles in the wild, and ours: a call of a tool is the assistant's own words, its result a `tool` turn."""


def dialogue(
    record: Mapping[str, Any],
    sounds: Sounds,
    used: Collection[str],
    *,
    column: str = "messages",
    audios: str = "audios",
    role: str = "role",
    content: str = "content",
) -> Conversation:
    """The dialogue in one column of a record.

    Args:
      used: the columns that the format knows; all others become `extra`.
      audios: the column of clips.
      role, content: what these fields of a message are called.

    Raises:
      DialogueError, AudioError: it cannot be used, and why.
    """
    said = turns(objects(record, column), clips(record, audios, sounds), sounds, column, audios, role, content)
    before = optional(record, "system", str)
    if before and said[0].role != "system":  # where both are given, LLaMA-Factory takes the message
        said = (system(before), *said)
    return Conversation(said, tools(record), extra(record, {*used, "audio", "system", "tools"}))


def turns(
    messages: list[Mapping[str, Any]],
    beside: list[Audio],
    sounds: Sounds,
    column: str,
    audios: str = "audios",
    role: str = "role",
    content: str = "content",
) -> tuple[Turn, ...]:
    """Messages to turns, the clips of the column `audios` put in their places."""
    places = sum(_places(message.get(content)) for message in messages)
    if places != len(beside):
        raise DialogueError(f"{audios}: {places} {PLACEHOLDER} in the text but {len(beside)} clips")
    following = iter(beside)
    return tuple(
        _turn(message, f"{column}[{i}].", role, content, following, sounds) for i, message in enumerate(messages)
    )


def clips(record: Mapping[str, Any], name: str, sounds: Sounds) -> list[Audio]:
    """The clips of a column: a list of references, or one, which Hugging Face calls `audio` in place of `audios`."""
    name = name if record.get(name) is not None else name.removesuffix("s")
    value = record.get(name)
    references = [] if value is None else value if isinstance(value, list) else [value]
    return [sounds.load(reference, f"{name}[{i}]") for i, reference in enumerate(references)]


def tools(record: Mapping[str, Any]) -> str | None:
    """The JSON text of tool schemas; a list, which some write in its place, is put into JSON."""
    value = record.get("tools")
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return field(record, "tools", str)


def ending_in(conversation: Conversation, reply: Turn, column: str) -> Conversation:
    """The dialogue with another last reply, which must be another."""
    *before, last = conversation.turns
    if last.role != "assistant":
        raise DialogueError(f"{column}: expected a dialogue that ends in an assistant turn, found a {last.role} turn")
    rejected = Conversation((*before, reply), conversation.tools, conversation.extra)
    check_different(conversation, rejected, column)
    return rejected


def check_different(chosen: Conversation, rejected: Conversation, column: str):
    """A pair must differ, or there is nothing to prefer."""
    one, other = ([(t.role, t.think, t.text, len(t.audio)) for t in side.turns] for side in (chosen, rejected))
    if one == other:
        raise DialogueError(f"{column}: the same as the preferred reply")


def _places(content: Any) -> int:
    """Places in a content for clips that stand beside it."""
    if isinstance(content, str):
        return content.count(PLACEHOLDER)
    return sum(map(parts.names_no_sound, content)) if isinstance(content, list) else 0


def _turn(
    message: Mapping[str, Any], path: str, role: str, content: str, following: Iterator[Audio], sounds: Sounds
) -> Turn:
    name = field(message, role, str, path)
    if name not in ROLES:
        raise DialogueError(f'{path}{role}: expected one of {", ".join(ROLES)}, found "{name}"')
    if message.get("tool_calls"):
        raise DialogueError(f"{path}tool_calls: not read; write the call into the content as the model should write it")
    found = _content(message.get(content), f"{path}{content}", following, sounds)
    think = None
    if ROLES[name] == "assistant":
        think, found = _reasoning(message, found, path)
    if not any(isinstance(part, Audio) or part.text.strip() for part in found):
        raise DialogueError(f"{path}{content}: expected text or audio, found an empty {name} turn")
    loss = optional(message, "loss", bool, path)
    kept = extra(message, (role, content, "loss", "reasoning_content"))
    return Turn(ROLES[name], found, think=think, loss=loss, extra=kept)


def _content(value: Any, path: str, following: Iterator[Audio], sounds: Sounds) -> tuple[Text | Audio, ...]:
    if isinstance(value, str):
        return with_placeholders(value, list(islice(following, value.count(PLACEHOLDER))), PLACEHOLDER)
    if isinstance(value, list):
        return tuple(parts.read(part, f"{path}[{i}]", following, sounds) for i, part in enumerate(value))
    raise DialogueError(f"{path}: expected text or a list of parts, found {called(type(value))}")


def _reasoning(
    message: Mapping[str, Any], found: tuple[Text | Audio, ...], path: str
) -> tuple[str | None, tuple[Text | Audio, ...]]:
    """(reasoning, the parts without it): a field of its own, or `<think>…</think>` at the head of the first text,
    whose opening tag may be missing, where a prompt template would have written it."""
    apart = (optional(message, "reasoning_content", str, path) or "").strip()
    head = found[0].text if found and isinstance(found[0], Text) else ""
    if not head.lstrip().startswith("<think>") and ("</think>" not in head or "<think>" in head):
        return apart or None, found
    if apart:
        raise DialogueError(f"{path}reasoning_content: expected reasoning in one place, the content has a <think> too")
    split = parse_reply(head)
    if not split.complete:
        raise DialogueError(f"{path}content: <think> is opened and never closed")
    return split.think or None, ((Text(split.answer),) if split.answer else ()) + found[1:]
