"""Splits what the model wrote into its thinking and its answer.

`<think>` and `</think>` are ordinary text to the tokenizer, so text is parsed, never ids. One streaming parser
serves streamed and whole text alike; it forgives a missing, repeated or stray tag.
"""

from __future__ import annotations

import dataclasses
import re

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(f"{OPEN}|{CLOSE}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """Attributes: think, the reasoning, stripped; answer, stripped; complete, whether the think block was closed
    (or there was none)."""

    think: str
    answer: str
    complete: bool


class ThinkParser:
    """Feeds on text as it comes; gives (part, text) pieces, part being "think" or "answer".

    The rules: a repeated `<think>` inside the block is dropped; the first `</think>` closes it; a second block that
    starts before any answer was written counts as thinking too; a stray `</think>` in the answer is dropped, and
    `<think>` after the answer has begun is the model's own words.
    """

    def __init__(self, *, opened: bool = True):
        """`opened`: the prompt already ended with `<think>`, as generation does."""
        self.thinking = opened
        self._think_written = opened
        self._answer_written = False
        self._held = ""

    def feed(self, text: str) -> list[tuple[str, str]]:
        return self._parse(self._held + text, final=False)

    def flush(self) -> list[tuple[str, str]]:
        return self._parse(self._held, final=True)

    def _parse(self, text: str, *, final: bool) -> list[tuple[str, str]]:
        self._held = ""
        pieces: list[tuple[str, str]] = []
        at = 0
        for match in _TAG.finditer(text):
            self._emit(pieces, text[at : match.start()])
            at = match.end()
            if match.group() == CLOSE:
                self.thinking = False
            elif not self.thinking:
                if self._answer_written:
                    self._emit(pieces, OPEN)
                else:
                    self.thinking = True
        rest = text[at:]
        if not final and (keep := _partial_tag(rest)):
            rest, self._held = rest[:-keep], rest[-keep:]
        self._emit(pieces, rest)
        return pieces

    def _emit(self, pieces: list[tuple[str, str]], text: str):
        if not text:
            return
        if not self.thinking and not self._answer_written:
            text = text.lstrip()
            self._answer_written = bool(text)
        if text:
            pieces.append(("think" if self.thinking else "answer", text))


def parse_reply(text: str, *, opened: bool = True) -> Reply:
    """Parses a whole generation. A block never closed is all thinking, with an empty answer, not complete."""
    parser = ThinkParser(opened=opened)
    pieces = parser.feed(text) + parser.flush()
    think, answer = ("".join(t for part, t in pieces if part == name).strip() for name in ("think", "answer"))
    return Reply(think, answer, complete=not parser.thinking)


def _partial_tag(text: str) -> int:
    """Length of the longest end of `text` that could still grow into a tag."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        tail = text[-size:]
        if OPEN.startswith(tail) or CLOSE.startswith(tail):
            return size
    return 0
