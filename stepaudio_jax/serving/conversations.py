"""Messages to a conversation: roles, parts, sound, and an assistant's earlier reasoning and calls."""

from __future__ import annotations

import json
from typing import Any

from stepaudio_jax.serving.errors import ApiError, shown
from stepaudio_jax.serving.hearing import Hearing
from stepaudio_jax.serving.protocol import ChatRequest, Message
from stepaudio_jax.serving.tool_calls import write_call
from stepaudio_jax.text import Audio, Conversation, Text, Turn, parse_reply

ROLES = {"developer": "system", "user": "human"}
"""OpenAI's names, and the model's; the others are passed through."""

TYPES = ("text", "input_audio", "audio_url")


def to_conversation(asked: ChatRequest, hearing: Hearing) -> Conversation:
    """What a request's messages say. Decodes their sound: not for the event loop.

    Raises:
      ApiError: a message that cannot be read, and why.
    """
    turns = tuple(
        _turn(message, f"messages[{i}]", hearing, bool(asked.continue_final_message) and i == len(asked.messages) - 1)
        for i, message in enumerate(asked.messages)
    )
    tools = None
    if asked.tools and asked.tool_choice != "none":
        tools = json.dumps([tool.model_dump(exclude_unset=True) for tool in asked.tools], ensure_ascii=False)
    return Conversation(turns, tools)


def _turn(message: Message, where: str, hearing: Hearing, continued: bool) -> Turn:
    parts = _parts(message.content, f"{where}.content", hearing)
    think = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if message.role != "assistant":
        if think is not None or message.tool_calls:
            field = "tool_calls" if message.tool_calls else "reasoning_content"
            raise _wrong(f"{where}.{field}", "only an assistant message to have it", message.role)
        if message.content is None:
            raise _wrong(f"{where}.content", "text or a list of parts", None)
        return Turn(ROLES.get(message.role, message.role), parts)
    if continued:
        if message.tool_calls:
            raise _wrong(f"{where}.tool_calls", "none in a message to be continued", len(message.tool_calls))
        return Turn("assistant", parts, think=think, complete=False)
    inline, parts = _reasoning(parts)
    for call in message.tool_calls or ():
        parts += (Text(write_call(call.function.name, call.function.arguments or "{}")),)
    return Turn("assistant", parts, think=inline if think is None else think)


def _reasoning(parts: tuple[Text | Audio, ...]) -> tuple[str | None, tuple[Text | Audio, ...]]:
    """(reasoning, the parts without it) of a reply sent back as it was written. Its `<think>` may be missing, as the
    prompt had it."""
    head = parts[0].text if parts and isinstance(parts[0], Text) else ""
    opened = head.lstrip().startswith("<think>")
    if not opened and ("</think>" not in head or "<think>" in head):
        return None, parts
    reply = parse_reply(head, opened=not opened)
    return reply.think, ((Text(reply.answer),) if reply.answer else ()) + parts[1:]


def _parts(content: str | list[dict[str, Any]] | None, where: str, hearing: Hearing) -> tuple[Text | Audio, ...]:
    if content is None or isinstance(content, str):
        return (Text(content),) if content else ()
    parts = (_part(part, f"{where}[{i}]", hearing) for i, part in enumerate(content))
    return tuple(part for part in parts if not isinstance(part, Text) or part.text)


def _part(part: dict[str, Any], where: str, hearing: Hearing) -> Text | Audio:
    kind = part.get("type")
    if kind not in TYPES:
        raise _wrong(f"{where}.type", f"one of {', '.join(TYPES)}", kind)
    value = part.get(kind)
    if kind == "text":
        return Text(_text(value, f"{where}.text"))
    if kind == "input_audio":
        if not isinstance(value, dict):
            raise _wrong(f"{where}.input_audio", "an object with data and format", value)
        return hearing.base64(_text(value.get("data"), f"{where}.input_audio.data"), f"{where}.input_audio.data")
    url = value.get("url") if isinstance(value, dict) else value
    return hearing.url(_text(url, f"{where}.audio_url.url"), f"{where}.audio_url.url")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    return value


def _wrong(where: str, expected: str, found: Any) -> ApiError:
    return ApiError(f"{where}: expected {expected}, found {shown(found)}", param=where, code="invalid_value")
