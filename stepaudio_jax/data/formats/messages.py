"""What the formats share: a list of messages to the turns of a dialogue.

A message's content is text, or a list of parts (parts.py). Clips that stand in a column beside the messages go, one
after the other, where a text says `<audio>` and where a part is of sound but names none; there must be as many places
as clips. One clip without a place goes to the head of the first human turn. In a record without sound `<audio>` is a
word like others. What is read of a record and what is not: all that no reader looks at is kept in `extra`, of the
dialogue or of the turn, and `stepaudio data check` counts it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, NamedTuple

from stepaudio_jax.data.formats import parts, replies
from stepaudio_jax.data.formats.fields import (
    DialogueError,
    called,
    check_number,
    extra,
    field,
    from_json_text,
    objects,
    optional,
    plain,
)
from stepaudio_jax.data.sounds import Clips, unread_of
from stepaudio_jax.text import Audio, Conversation, Text, Turn, system, with_placeholders

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
    "function": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
"""The names of roles in the wild, and ours: a call of a tool is the assistant's own words, its result a `tool` turn."""

OF_CALLS = ("tool_call", "function_call")

DIALOGUES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "rejected_messages")
CLIPS = ("audios", "audio", "rejected_audios", "rejected_audio")
"""Columns that a dialogue, or the clips of one, may stand in."""


class Names(NamedTuple):
    """Attributes: column, of messages; audios, of clips; role and content, what a message calls these."""

    column: str = "messages"
    audios: str = "audios"
    role: str = "role"
    content: str = "content"


NAMES = Names()


def dialogue(record: Mapping[str, Any], sounds: Clips, used: Collection[str], names: Names = NAMES) -> Conversation:
    """The dialogue in one column of a record.

    Args:
      used: the columns that the format reads of this record, beside those of `names`; all others become `extra`.

    Raises:
      DialogueError, AudioError: it cannot be used, and why.
    """
    if record.get("kto_tag") is False:
        raise DialogueError("kto_tag: expected a reply to be learned from, or a pair, found a bad one")
    beside, read, rest = clips(record, names.audios, sounds)
    said = turns(objects(record, names.column), beside, sounds, names, literal=not has_sound(record))
    used = {*used, names.column, *read, "tools"}
    before = optional(record, "system", str) or ""
    if said[0].role != "system":  # where both are given, LLaMA-Factory takes the message
        used |= {"system"}
        said = (system(before), *said) if before.strip() else said
    return Conversation(said, tools(record), extra(record, used) | rest)


def turns(
    messages: list[Mapping[str, Any]], clips: list[Audio], sounds: Clips, names: Names, *, literal: bool
) -> tuple[Turn, ...]:
    """Messages to turns, the clips that stand beside them put in their places. An empty system message is none.

    Args:
      literal: `<audio>` is text, since the record has no sound.
    """
    contents = [message.get(names.content) for message in messages]
    beside = _Beside(clips, literal)
    places, first = sum(map(beside.places, contents)), None
    if places == 0 and len(clips) == 1 and not any(map(_has_sound, contents)):
        first = next((i for i, message in enumerate(messages) if _role(message, names) == "human"), None)
    if first is None and places != len(clips):
        found = f"{places} {PLACEHOLDER} in the text but {len(clips)} clips"
        raise DialogueError(f"{names.audios}: {found}; expected one {PLACEHOLDER} where each clip goes")
    said: list[Turn] = []
    kept: dict[str, Any] = {}  # of empty system messages
    for i, message in enumerate(messages):
        head = (next(beside.following),) if i == first else ()
        turn = _turn(message, f"{names.column}[{i}].", names, head, beside, sounds)
        if turn.role == "system" and not turn.parts:
            kept |= {f"system.{name}": value for name, value in turn.extra.items()}
        else:
            said.append(turn)
    if not said:
        raise DialogueError(f"{names.column}: expected a dialogue, found an empty system message only")
    if kept:
        said[0] = dataclasses.replace(said[0], extra={**said[0].extra, **kept})
    return tuple(said)


class _Beside:
    """The clips that stand beside messages, and the places in a content where they go."""

    def __init__(self, clips: list[Audio], literal: bool):
        self.following = iter(clips)
        self._literal = literal
        self._in_parts = bool(clips)  # where sound stands in parts alone, `<audio>` beside them is text

    def places(self, content: Any) -> int:
        if isinstance(content, str):
            return 0 if self._literal else content.count(PLACEHOLDER)
        if not isinstance(content, list):
            return 0
        texts = (text.count(PLACEHOLDER) for part in content if (text := parts.text_of(part)) and self._in_parts)
        return sum(map(parts.names_no_sound, content)) + sum(texts)

    def split(self, text: str, *, is_part: bool = False) -> tuple[Text | Audio, ...]:
        """The parts of a text, the next clips at its places."""
        if self._literal or (is_part and not self._in_parts):
            return (Text(text),) if text else ()
        return with_placeholders(text, list(islice(self.following, text.count(PLACEHOLDER))), PLACEHOLDER)


def clips(record: Mapping[str, Any], name: str, sounds: Clips) -> tuple[list[Audio], set[str], dict[str, Any]]:
    """(clips, the columns that are read, what the references hold beside) of a list of references, or of one, which
    Hugging Face calls `audio` in place of `audios`."""
    columns = (name, name.removesuffix("s"))
    name = next((column for column in columns if _references(record, column)), name)
    read = {column for column in columns if column == name or not _references(record, column)}
    found, unread = [], {}
    for i, reference in enumerate(_references(record, name)):
        found.append(sounds.load(reference, f"{name}[{i}]"))
        if isinstance(reference, Mapping):
            for field_name, value in unread_of(reference).items():
                unread.setdefault(f"{name}[].{field_name}", []).append(plain(value))
    return found, read, unread


def has_sound(record: Mapping[str, Any]) -> bool:
    """Whether any column has a clip, or any message a part of sound."""
    if any(_references(record, name) for name in CLIPS):
        return True
    columns = (record.get(name) for name in DIALOGUES)
    messages = (message for column in columns for message in (column if isinstance(column, list) else [column]))
    return any(
        _has_sound(message.get(content))
        for message in messages
        if isinstance(message, Mapping)
        for content in ("content", "value")
    )


def tools(record: Mapping[str, Any]) -> str | None:
    """The JSON text of tool schemas; a list, which some write in its place, is put into JSON. An empty list is none."""
    value = record.get("tools")
    if from_json_text(value, "tools", default=value) in (None, [], {}):
        return None
    if isinstance(value, list):
        schemas = [from_json_text(schema, f"tools[{i}]") for i, schema in enumerate(value)]
        return json.dumps(plain(schemas), ensure_ascii=False)
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


def _references(record: Mapping[str, Any], name: str) -> list[Any]:
    """What a column of clips names; null, and an object of nothing but null, which parquet makes of it, is none."""
    value = record.get(name)
    if value is None or (isinstance(value, Mapping) and all(inside is None for inside in value.values())):
        return []
    return value if isinstance(value, list) else [value]


def _has_sound(content: Any) -> bool:
    return isinstance(content, list) and any(map(parts.is_sound, content))


def _role(message: Mapping[str, Any], names: Names) -> str | None:
    """Ours for a message's role; None for one that is not known."""
    name = message.get(names.role)
    return ROLES.get(name) if isinstance(name, str) else None


def _turn(
    message: Mapping[str, Any], path: str, names: Names, head: tuple[Audio, ...], beside: _Beside, sounds: Clips
) -> Turn:
    """A message to a turn, the clips of `head` before its content."""
    name = field(message, names.role, str, path)
    if name not in ROLES:
        raise DialogueError(f'{path}{names.role}: expected one of {", ".join(ROLES)}, found "{name}"')
    role, content, used = ROLES[name], message.get(names.content), {names.role, names.content, "loss", *replies.CALLS}
    written, unread = replies.calls(message, path)
    if written and role != "assistant":
        raise DialogueError(f"{path}tool_calls: expected none, only an assistant calls tools, found a {name} turn")
    if content is None and (written or role == "system"):
        content = ""
    if name in OF_CALLS and isinstance(content, str):
        content = replies.as_call(content, f"{path}{names.content}")
    found, rest = _content(content, f"{path}{names.content}", beside, sounds)
    think = None
    if role == "assistant":
        used |= {*replies.REASONING}
        think, found = replies.reasoning(message, found, path, names.content)
    found = (*head, *found, *written)
    if not any(isinstance(part, Audio) or part.text.strip() for part in found):
        if role not in ("system", "tool"):
            raise DialogueError(f"{path}{names.content}: expected text or audio, found an empty {name} turn")
        found = ()
    unread |= {f"{names.content}[].{inside}": value for inside, value in rest.items()}
    loss = optional(message, "loss", bool, path)
    if loss is None and message.get("weight") in (0, 1):  # OpenAI's name for it
        loss, used = bool(message["weight"]), {*used, "weight"}
    return Turn(role, found, think=think, loss=loss, extra=extra(message, used) | unread)


def _content(
    value: Any, path: str, beside: _Beside, sounds: Clips
) -> tuple[tuple[Text | Audio, ...], dict[str, list[Any]]]:
    """(the parts of a content, what its parts hold that is not read)."""
    if isinstance(value, str):
        return beside.split(value), {}
    if not isinstance(value, list):
        raise DialogueError(f"{path}: expected text or a list of parts, found {called(type(value))}")
    check_number(value, path)
    found: list[Text | Audio] = []
    unread: dict[str, list[Any]] = {}
    for i, part in enumerate(value):
        made = parts.read(part, f"{path}[{i}]", beside.following, sounds)
        found += [made] if isinstance(made, Audio) else beside.split(made.text, is_part=True)
        for name, rest in parts.unread(part).items():
            unread.setdefault(name, []).append(rest)
    return tuple(found), unread
