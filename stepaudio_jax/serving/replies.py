"""From the engine's events to the pieces of a choice, for streamed and whole answers alike."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

from stepaudio_jax.inference import Completion, Finished, SamplingParams, TextDelta, TokenScore, Usage
from stepaudio_jax.serving.scores import scores_of
from stepaudio_jax.serving.settings import Reasoning
from stepaudio_jax.serving.tool_calls import Call, ToolCallParser


@dataclasses.dataclass(frozen=True)
class Piece:
    """Something to add to a choice.

    Attributes:
      delta: as in a streamed chunk: content, reasoning_content, tool_calls.
      scores: of the tokens since the piece before.
      finish_reason: of the last piece; `stop_reason` is vLLM's, the string or token id asked for that ended it.
    """

    delta: dict[str, Any]
    scores: tuple[TokenScore, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Choice:
    """One reply under way.

    Attributes:
      completion: once it has finished.
      reasoning_tokens: written while it was thinking.
    """

    def __init__(self, index: int, sampling: SamplingParams, reasoning: Reasoning, *, tools: bool = False):
        self.index = index
        self.completion: Completion | None = None
        self.reasoning_tokens = 0
        self._sampling, self._reasoning = sampling, reasoning
        self._calls = ToolCallParser() if tools else None
        self._num_calls = 0
        self._spaces = {"think": "", "answer": ""}  # that end a part or stand between two of its words
        self._begun = {"think": False, "answer": False}
        self._scores: list[TokenScore] = []
        self._scored = 0

    def feed(self, event: TextDelta | Finished) -> list[Piece]:
        """The pieces an event adds; one without text or calls waits for the next."""
        if isinstance(event, Finished):
            return self._finish(event.completion)
        self._scores += event.tokens
        self._scored += len(event.tokens)
        if event.part == "think":
            self.reasoning_tokens += len(event.tokens)
        return self._pieces(self._deltas(event.part, event.text))

    def _finish(self, completion: Completion) -> list[Piece]:
        self.completion = completion
        self._scores += scores_of(completion, self._scored)
        rest = [delta for piece in (self._calls.flush() if self._calls else ()) for delta in self._content(piece)]
        reason = "tool_calls" if self._num_calls and completion.finish_reason == "stop" else completion.finish_reason
        last = Piece({}, tuple(self._scores), reason, self._stop_reason(completion))
        self._scores = []
        return [*(Piece(delta) for delta in rest), last]

    def _stop_reason(self, completion: Completion) -> str | int | None:
        if completion.stop_reason in self._sampling.stop:
            return completion.stop_reason
        last = completion.token_ids[-1] if completion.token_ids else None
        return last if completion.finish_reason == "stop" and last in self._sampling.stop_token_ids else None

    def _pieces(self, deltas: list[dict[str, Any]]) -> list[Piece]:
        pieces = []
        for delta in deltas:
            pieces.append(Piece(delta, tuple(self._scores)))
            self._scores = []
        return pieces

    def _deltas(self, part: str, text: str) -> list[dict[str, Any]]:
        if self._reasoning != "inline":
            text = self._stripped(part, text)
        if not text:
            return []
        if part == "think":
            return [{"reasoning_content": text}] if self._reasoning == "apart" else []
        found = self._calls.feed(text) if self._calls else [text]
        return [delta for piece in found for delta in self._content(piece)]

    def _content(self, piece: str | Call) -> list[dict[str, Any]]:
        if isinstance(piece, str):
            return [{"content": piece}]
        self._num_calls += 1
        function = {"name": piece.name, "arguments": piece.arguments}
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        index = self._num_calls - 1
        return [{"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}]

    def _stripped(self, part: str, text: str) -> str:
        """What can be shown of a part, were it stripped of white space at both ends."""
        text = self._spaces[part] + text
        if not self._begun[part]:
            text = text.lstrip()
        shown = text.rstrip()
        self._spaces[part] = text[len(shown) :]
        self._begun[part] |= bool(shown)
        return shown


def join(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The message that the pieces of a choice make."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for piece in pieces:
        for name, value in piece.delta.items():
            message[name] = value if message.get(name) is None else message[name] + value
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    else:
        message["content"] = message["content"] or ""
    return message


def usage(choices: list[Choice], prompts: int = 1) -> dict[str, Any]:
    """The sizes of a request; its prompts are counted once, however many replies were asked for.

    Args:
      prompts: of which the choices are the replies, in order, as many to each.
    """
    done = [choice.completion.usage for choice in choices if choice.completion]
    firsts: list[Usage] = done[:: max(1, len(done) // prompts)]
    written = sum(each.completion_tokens for each in done)
    read = sum(each.prompt_tokens for each in firsts)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "audio_tokens": sum(each.audio_tokens for each in firsts),
            "cached_tokens": sum(each.cached_tokens for each in firsts),
        },
        "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
    }
