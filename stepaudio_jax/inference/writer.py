"""One request's reply as it is written: text, tags, stop strings, think budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stepaudio_jax.inference.types import Completion, Request, TextDelta, TokenScore, Usage
from stepaudio_jax.text import Reply, TextStream, ThinkParser, Tokenizer
from stepaudio_jax.text.prompt import THINK_CLOSE


class ReplyWriter:
    """Takes tokens one by one and decides when the reply ends and what must be forced next.

    Attributes:
      done: nothing more is wanted.
      pending: tokens to be forced next, in order.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, prefix: str, stop_ids: Sequence[int], usage: Usage):
        """`prefix` is the text of the open assistant turn that the prompt ends with."""
        self.request, self.stop_ids = request, tuple(stop_ids)
        self.done = False
        self.pending: list[int] = []
        self.token_ids: list[int] = []
        self._scores: list[TokenScore] = []
        self._told = 0  # so many of them have gone out with events
        self._tokenizer = tokenizer
        self._usage = usage
        self._events: list[TextDelta] = []
        self._stream = TextStream(tokenizer, skip_special=request.skip_special)
        self._parser = ThinkParser(opened=False)
        self._parser.feed(prefix)
        self._watch = ThinkParser(opened=False)  # sees text at once, where the other waits for stop strings
        self._watch.feed(prefix)
        self._think_tokens = 0
        self._text = ""
        self._shown = 0
        self._parts = {"think": "", "answer": ""}
        self._stop_reason = "length"
        self._spend_budget()

    def found_in_cache(self, tokens: int):
        """So many tokens of the prompt needed no computing."""
        self._usage = dataclasses.replace(self._usage, cached_tokens=tokens)

    def push(self, token: int, log_prob: float | None, top: tuple[tuple[int, float], ...] = ()):
        """Adds a token; a forced one has no log-probability. `top`: see `TokenScore`."""
        if self.pending and self.pending[0] == token:
            self.pending.pop(0)
        self.token_ids.append(token)
        self._scores.append(TokenScore(token, log_prob, top))
        if token in self.stop_ids:
            return self._finish(self._tokenizer.decode([token], skip_special=False))
        self._think_tokens += self._watch.thinking
        if piece := self._stream.push([token]):
            self._add(piece)
        if not self.done and len(self.token_ids) >= self.request.sampling.max_new_tokens:
            self._finish("length")
        if not self.done:
            self._spend_budget()

    def out_of_room(self):
        """The model has no position for another token."""
        self._finish("length")

    def take_events(self) -> list[TextDelta]:
        """The text written since this was last called."""
        events, self._events = self._events, []
        return events

    def completion(self) -> Completion:
        parser = self._parser if self.request.split_think else self._watch
        reply = Reply(self._parts["think"].strip(), self._parts["answer"].strip(), not parser.thinking)
        return Completion(
            request_id=self.request.id,
            token_ids=tuple(self.token_ids),
            log_probs=tuple(score.log_prob for score in self._scores),
            forced=tuple(score.log_prob is None for score in self._scores),
            top_log_probs=tuple(s.top for s in self._scores) if self.request.sampling.top_log_probs else (),
            finish_reason="length" if self._stop_reason == "length" else "stop",
            stop_reason=self._stop_reason,
            text=self._text,
            think=reply.think,
            answer=reply.answer,
            complete=reply.complete,
            usage=dataclasses.replace(self._usage, completion_tokens=len(self.token_ids)),
        )

    def _spend_budget(self):
        budget = self.request.sampling.think_budget
        if budget is not None and self._watch.thinking and not self.pending and self._think_tokens >= budget:
            self.pending = self._tokenizer.encode(THINK_CLOSE)

    def _add(self, piece: str):
        self._watch.feed(piece)
        self._text += piece
        stops = self.request.sampling.stop
        found = [(at, stop) for stop in stops if (at := self._text.find(stop, self._search_from(stop, piece))) >= 0]
        if found:
            at, stop = min(found)
            self._text = self._text[:at]
            return self._finish(stop)
        hold = max((_overlap(self._text, stop) for stop in stops), default=0)
        self._show(len(self._text) - hold)

    def _search_from(self, stop: str, piece: str) -> int:
        return max(0, len(self._text) - len(piece) - len(stop) + 1)

    def _finish(self, reason: str):
        self.done, self.pending, self._stop_reason = True, [], reason
        if reason not in self.request.sampling.stop:
            self._text += self._stream.flush()
        self._show(len(self._text))
        if self.request.split_think:
            self._deliver(self._parser.flush())

    def _show(self, until: int):
        if until > self._shown:
            text = self._text[self._shown : until]
            self._deliver(self._parser.feed(text) if self.request.split_think else [("answer", text)])
            self._shown = until

    def _deliver(self, pieces: list[tuple[str, str]]):
        for part, text in pieces:
            self._parts[part] += text
            tokens, self._told = tuple(self._scores[self._told :]), len(self._scores)
            self._events.append(TextDelta(self.request.id, part, text, tokens))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
