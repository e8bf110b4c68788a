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
_NAME = r"[A-Za-z0-9_.-]{1,64}"
_CALL = re.compile(rf"\s*function\s*\n\s*({_NAME})\s*\n(.*)", re.DOTALL)
_MARK = re.compile(rf'\\[^\n]|["\n]|{CLOSE}')
"""What says where a call ends: escaped characters, quotes, and newlines, which no string of JSON has."""


@dataclasses.dataclass(frozen=True)
class Call:
    """`arguments` is JSON text, an object."""

    name: str
    arguments: str


def write_call(name: str, arguments: str) -> str:
    """The text of a call; `arguments` is JSON text, an object."""
    return f"{OPEN}function\n{name}\n{arguments}{CLOSE}"


def make_call(name: str, arguments: str) -> Call:
    """A call from outside, checked: what `write_call` makes of it, `ToolCallParser` reads.

    Raises:
      ValueError: no name of a function, or arguments that are no JSON object.
    """
    if not re.fullmatch(_NAME, name):
        raise ValueError(f'name: expected up to 64 letters, digits, "_", "." or "-", found "{name}"')
    if (call := _parse(write_call(name, arguments))) is None:
        raise ValueError(f'arguments: expected the JSON text of an object, found "{arguments}"')
    return call


class ToolCallParser:
    """Feeds on the text of a reply as it comes; gives its text and its calls, each call once it is whole.

    A closing tag within a string of the arguments is part of the string. What begins like a call but is none stays
    text, up to its first closing tag.
    """

    def __init__(self):
        self._held = ""
        self._in_call = False  # what is held begins with the opening tag
        self._restart()

    def feed(self, text: str) -> list[str | Call]:
        self._held += text
        return self._take(final=False)

    def flush(self) -> list[str | Call]:
        """The rest of a reply that has ended."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> list[str | Call]:
        found: list[str | Call] = []
        while True:
            if not self._in_call:
                at = self._held.find(OPEN)
                self._in_call = at >= 0
                keep = len(self._held) - at if self._in_call else 0 if final else _begun(self._held)
                found.append(self._cut(len(self._held) - keep))
                if not self._in_call:
                    break
            end = self._end(final=final)
            if end is None:
                break
            whole = self._cut(end)
            found.append(_parse(whole) or whole)
            self._in_call = False
        return [piece for piece in found if piece]

    def _end(self, *, final: bool) -> int | None:
        """Where the call that is held ends; None as long as that is open."""
        while match := _MARK.search(self._held, self._seen):
            mark, self._seen = match.group(), match.end()
            if mark == CLOSE:
                if self._broken or not self._in_string:
                    return self._seen
                self._first_close = self._first_close or self._seen
            elif mark == '"':
                self._in_string = not self._in_string
            elif mark == "\n" and self._in_string:  # this is no JSON, so its quotes say nothing
                if self._first_close:
                    return self._first_close
                self._broken = True
            elif self._broken or not self._in_string:  # a backslash outside of a string escapes nothing
                self._seen = match.start() + 1
        # There is no mark in what is left, but its end may be the beginning of one.
        self._seen = max(self._seen, len(self._held) - len(CLOSE) + 1)
        return (self._first_close or len(self._held)) if final else None

    def _cut(self, end: int) -> str:
        piece, self._held = self._held[:end], self._held[end:]
        self._restart()
        return piece

    def _restart(self):
        self._seen, self._first_close = 0, 0  # how far what is held was looked at; behind its first closing tag
        self._in_string, self._broken = False, False


def _parse(whole: str) -> Call | None:
    match = _CALL.fullmatch(whole.removeprefix(OPEN).removesuffix(CLOSE)) if whole.endswith(CLOSE) else None
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
