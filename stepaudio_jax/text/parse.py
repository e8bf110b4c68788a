"""Splits what the model wrote into its thinking and its answer.

`<think>` and `</think>` are ordinary text to the tokenizer, so text is parsed, never ids. One streaming parser
serves streamed and whole text alike; it forgives a missing, repeated or stray tag. What a model is trained on is not
forgiven: `split_reply` takes one think block, at the head, and nothing else.
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


def has_tag(text: str) -> bool:
    """Whether a tag of a think block stands in the text."""
    return _TAG.search(text) is not None


def split_reply(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a reply to be trained on, both stripped. Its think block stands at the head; the opening
    tag may be missing, where a prompt template would have written it. Text without tags is all answer, as it is.

    Raises:
      ValueError: a block that is not closed, a second one, or one after the answer has begun.
    """
    think, close, answer = text.partition(CLOSE)
    before, opened, inside = think.partition(OPEN)
    if not opened and not close:
        return "", text
    if opened and before.strip():
        raise ValueError(f"expected {OPEN} at the head of a reply, found it after the answer has begun")
    if not close:
        raise ValueError(f"{OPEN} is opened and never closed")
    for tag in (OPEN, CLOSE):
        if tag in answer:
            raise ValueError(f"expected one think block at the head of a reply, found another {tag} behind it")
    think = inside if opened else think
    if OPEN in think:
        raise ValueError(f"expected one think block at the head of a reply, found another {OPEN} in it")
    return think.strip(), answer.strip()


def _partial_tag(text: str) -> int:
    """Length of the longest end of `text` that could still grow into a tag."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        tail = text[-size:]
        if OPEN.startswith(tail) or CLOSE.startswith(tail):
            return size
    return 0
