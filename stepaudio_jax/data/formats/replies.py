"""What an assistant's message holds beside its answer: reasoning, and calls of tools.

    {"role": "assistant", "reasoning_content": "I hear…", "content": "Two."}          also "reasoning", "thinking"
    {"role": "assistant", "content": "<think>I hear…</think>Two."}
    {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
                                                            "function": {"name": "f", "arguments": "{}"}}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats.fields import DialogueError, called, extra, field, from_json_text, optional, plain
from stepaudio_jax.text import Audio, Text, has_tag, split_reply
from stepaudio_jax.text.tool_calls import make_call, write_call

REASONING = ("reasoning_content", "reasoning", "thinking")
"""vLLM and DeepSeek; vLLM since 0.16 and OpenRouter; Hugging Face."""

CALLS = ("tool_calls", "function_call")
"""OpenAI's fields, today's and the older one of a single call."""

Parts = tuple[Text | Audio, ...]


def reasoning(message: Mapping[str, Any], found: Parts, path: str, content: str) -> tuple[str | None, Parts]:
    """(reasoning, the parts without it). It stands in a field of its own, or at the head of the content.

    Raises:
      DialogueError: reasoning in two places that differ, or in tags elsewhere than at the head of the content.
    """
    said = {}
    for name in REASONING:
        said[name] = (optional(message, name, str, path) or "").strip()
        if has_tag(said[name]):
            raise DialogueError(f"{path}{name}: expected reasoning without <think> tags, found one in it")
    try:
        said[content], found = _split(found)
    except ValueError as error:
        raise DialogueError(f"{path}{content}: {error}") from None
    (first, think), *others = [(name, text) for name, text in said.items() if text] or [("", None)]
    for name, text in others:
        if text != think:
            raise DialogueError(f"{path}{name}: expected reasoning in one place, {first} has another one")
    return think, found


def _split(parts: Parts) -> tuple[str, Parts]:
    """(reasoning, the parts without it), where the text before the first sound begins with a think block."""
    if not any(has_tag(part.text) for part in parts if isinstance(part, Text)):
        return "", parts
    spoken = next((i for i, part in enumerate(parts) if isinstance(part, Audio)), len(parts))
    head = "".join(part.text for part in parts[:spoken] if isinstance(part, Text))
    if any(has_tag(part.text) for part in parts[spoken:] if isinstance(part, Text)):
        raise ValueError("expected one think block at the head of a reply, before its sound, found a tag behind sound")
    think, answer = split_reply(head)
    return think, ((Text(answer),) if answer else ()) + parts[spoken:]


def calls(message: Mapping[str, Any], path: str) -> tuple[Parts, dict[str, Any]]:
    """(the calls of a message as the model writes them, the fields of the calls that are not read).

    Raises:
      DialogueError: calls that are none, or that the model could not write.
    """
    listed = from_json_text(message.get("tool_calls"), f"{path}tool_calls")
    if not isinstance(listed, list | None):
        raise DialogueError(f"{path}tool_calls: expected a list, found {called(type(listed))}")
    named: list[tuple[Any, str]] = [(call, f"{path}tool_calls[{i}]") for i, call in enumerate(listed or ())]
    if message.get("function_call") is not None:
        named.append(({"function": message["function_call"]}, f"{path}function_call"))
    written, unread = [], {}
    for call, where in named:
        if not isinstance(call, Mapping):
            raise DialogueError(f"{where}: expected an object, found {called(type(call))}")
        if call.get("type") not in (None, "function"):
            raise DialogueError(f'{where}.type: expected "function", found "{call["type"]}"')
        function = field(call, "function", dict, f"{where}.")
        written.append(Text(_written(function, f"{where}.function")))
        inside = extra(function, ("name", "arguments"))
        rest = extra(call, ("type", "function")) | {f"function.{name}": value for name, value in inside.items()}
        for name, value in rest.items():
            unread.setdefault(f"tool_calls[].{name}", []).append(value)
    return tuple(written), unread


def as_call(words: str, path: str) -> str:
    """What a turn of the roles `tool_call` (ms-swift) or `function_call` (LLaMA-Factory) says, as the model writes it.
    There it is JSON of name and arguments, or a list of such; all else stays as it is."""
    found = from_json_text(words, "", default=None)
    listed = found if isinstance(found, list) else [found]
    if not listed or not all(isinstance(call, Mapping) and {*call} == {"name", "arguments"} for call in listed):
        return words
    return "".join(_written(call, path) for call in listed)


def _written(function: Mapping[str, Any], where: str) -> str:
    name, arguments = field(function, "name", str, f"{where}."), function.get("arguments")
    if arguments is None or arguments == "":
        arguments = "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(plain(arguments), ensure_ascii=False)
    if has_tag(arguments):
        raise DialogueError(f"{where}.arguments: expected no think tags behind the head of a reply, found one")
    try:
        call = make_call(name, arguments)
    except ValueError as error:
        raise DialogueError(f"{where}.{error}") from None
    return write_call(call.name, call.arguments)
