"""Calls of tools, as the model writes them and as OpenAI's protocol does.

<tool_call>function
get_weather
{"city": "Oslo"}</tool_call>
"""

from __future__ import annotations

import dataclasses
import json
import re

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(r"\s*function\s*\n\s*([A-Za-z0-9_.-]{1,64})\s*\n(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Call:
    """`arguments` is JSON text, an object."""

    name: str
    arguments: str


def write_call(name: str, arguments: str) -> str:
    return f"{OPEN}function\n{name}\n{arguments}{CLOSE}"


class ToolCallParser:
    """Feeds on the text of a reply as it comes; gives its text and its calls, each call once it is whole.

    What begins like a call but is none stays text.
    """

    def __init__(self):
        self._held = ""

    def feed(self, text: str) -> list[str | Call]:
        self._held += text
        found: list[str | Call] = []
        while (at := self._held.find(OPEN)) >= 0 and (end := self._held.find(CLOSE, at)) >= 0:
            whole = self._held[at : end + len(CLOSE)]
            found += [self._held[:at], _parse(whole) or whole]
            self._held = self._held[end + len(CLOSE) :]
        keep = len(self._held) - at if at >= 0 else _begun(self._held)
        found.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return [piece for piece in found if piece]

    def flush(self) -> list[str | Call]:
        held, self._held = self._held, ""
        return [held] if held else []


def _parse(whole: str) -> Call | None:
    match = _CALL.fullmatch(whole.removeprefix(OPEN).removesuffix(CLOSE))
    if match is None:
        return None
    try:
        arguments = json.loads(match.group(2))
    except (ValueError, RecursionError):
        return None
    return Call(match.group(1), match.group(2).strip()) if isinstance(arguments, dict) else None


def _begun(text: str) -> int:
    """Length of the longest end of `text` that could still grow into the opening tag."""
    return next((size for size in range(min(len(text), len(OPEN) - 1), 0, -1) if OPEN.startswith(text[-size:])), 0)
