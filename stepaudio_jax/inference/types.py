"""What is asked of a generator and what it gives back: the plain loop, and the engine later, serve these.

for event in generate([Request(conversation)]):
    TextDelta(…) pieces as they are written, then one Finished(…) per request
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from stepaudio_jax.text import Conversation

_ids = itertools.count()


def _check(ok: bool, field: str, expected: str, found):
    if not ok:
        raise ValueError(f"{field}: expected {expected}, found {found}")


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. The defaults are the release's (MODEL.md §5), but for the length.

    Attributes:
      temperature: 0 is greedy.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
      min_p: keep tokens at least this share as likely as the likeliest; 0 keeps all.
      repetition_penalty: divides positive and multiplies negative logits of tokens already in prompt or reply
        (arXiv:1909.05858, section 4.1); 1 is none.
      max_new_tokens: most tokens to write, forced ones included.
      stop_token_ids: end on these besides the model's own end-of-turn ids.
      stop: end where one of these strings appears in the text; the string is cut off.
      think_budget: close the think block after this many tokens in it; None never does.
      seed: equal seeds give equal tokens, whatever else is in the batch.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 2048
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    think_budget: int | None = None
    seed: int = 0

    def __post_init__(self):
        _check(self.temperature >= 0, "temperature", "0 (greedy) or more", self.temperature)
        _check(self.top_k >= 0, "top_k", "0 (all) or more", self.top_k)
        _check(0 < self.top_p <= 1, "top_p", "more than 0 and at most 1", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p)
        _check(self.repetition_penalty > 0, "repetition_penalty", "more than 0", self.repetition_penalty)
        _check(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        _check(all(self.stop), "stop", "strings that are not empty", self.stop)
        _check(self.think_budget is None or self.think_budget >= 0, "think_budget", "0 or more", self.think_budget)
        _check(0 <= self.seed < 2**32, "seed", "between 0 and 2^32 − 1", self.seed)


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation to be continued.

    Attributes:
      thinking: False hands the model the empty think block, so that it answers at once.
      keep_think: keep the reasoning of earlier assistant turns in the prompt.
      template: "default" or "released", see `text.render`.
      id: returned with every event; made up if not given.
    """

    conversation: Conversation
    sampling: SamplingParams = SamplingParams()
    thinking: bool = True
    keep_think: bool = False
    template: str = "default"
    id: str = dataclasses.field(default_factory=lambda: f"request-{next(_ids)}")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Sizes of a request; `audio_tokens` are among the `prompt_tokens`."""

    audio_seconds: float
    audio_tokens: int
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote.

    Attributes:
      token_ids: every token, the one that ended it included.
      log_probs: of each token under the model's distribution at the sampling temperature (at 1 when greedy), before
        top-k, top-p, min-p and repetition penalty; None for a forced token.
      forced: whether each token was put there (a closed think budget) and not chosen by the model.
      finish_reason: "stop" or "length".
      stop_reason: the special string or stop string that ended it, or "length".
      text: as written, tags included.
      think, answer: its two parts; `complete` says that the think block was closed.
    """

    request_id: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float | None, ...]
    forced: tuple[bool, ...]
    finish_reason: Literal["stop", "length"]
    stop_reason: str
    text: str
    think: str
    answer: str
    complete: bool
    usage: Usage


@dataclasses.dataclass(frozen=True)
class AudioProgress:
    """So many of a batch's audio chunks have been encoded."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """A piece of text as it is written; `part` is "think" or "answer"."""

    request_id: str
    part: str
    text: str


@dataclasses.dataclass(frozen=True)
class Finished:
    completion: Completion

    @property
    def request_id(self) -> str:
        return self.completion.request_id


Event = AudioProgress | TextDelta | Finished
Generate = Callable[[Iterable[Request]], Iterator[Event]]
