"""What is asked of the engine and what it gives back.

for event in generate([Request(conversation)]):
    TextDelta(…) pieces as they are written, then one Finished(…) per request
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from stepaudio_jax.text import Conversation

MAX_TOP_LOG_PROBS = 20
"""OpenAI's limit."""

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
      top_log_probs: with each token also report this many of the likeliest ones, at most MAX_TOP_LOG_PROBS.
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
    top_log_probs: int = 0

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
        most = MAX_TOP_LOG_PROBS
        _check(0 <= self.top_log_probs <= most, "top_log_probs", f"between 0 and {most}", self.top_log_probs)


@dataclasses.dataclass(frozen=True)
class LongAudio:
    """How sound that does not fit into one prompt is heard: in windows, whose answers are merged (long_audio.py).

    Attributes:
      window_seconds: most seconds of a window; by default what fits beside the prompt and the reply. Where it is given,
        sound that would fit but is longer is heard in windows too.
      overlap_seconds: how far a window reaches into the next; by default 30, or a quarter of the window where that is
        less.
      merge: "ask" gives the model the windows' answers and asks for one; "join" puts them one after another, words that
        an overlap repeats only once, which is for transcriptions.
    """

    window_seconds: float | None = None
    overlap_seconds: float | None = None
    merge: Literal["ask", "join"] = "ask"

    def __post_init__(self):
        window, overlap = self.window_seconds, self.overlap_seconds
        _check(window is None or 1 <= window < math.inf, "window_seconds", "1 or more", window)
        _check(overlap is None or 0 <= overlap < math.inf, "overlap_seconds", "0 or more", overlap)
        fits = window is None or overlap is None or 2 * overlap <= window
        _check(fits, "overlap_seconds", f"at most half a window of {window} s", overlap)
        _check(self.merge in ("ask", "join"), "merge", '"ask" or "join"', f'"{self.merge}"')

    @classmethod
    def of(cls, choice: str, **options: Any) -> LongAudio | None:
        """From what a user says: "refuse", which is None, or "split" with the attributes above that he gives."""
        _check(choice in ("refuse", "split"), "long_audio", '"refuse" or "split"', f'"{choice}"')
        given = {name: value for name, value in options.items() if value is not None}
        _check(choice == "split" or not given, ", ".join(given), 'long_audio "split" beside it', f'"{choice}"')
        return cls(**given) if choice == "split" else None


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation to be continued, or a text.

    Attributes:
      conversation: None where `token_ids` is given.
      token_ids: the whole prompt as ids, instead of a conversation; it holds no sound.
      thinking: False hands the model the empty think block, so that it answers at once.
      keep_think: keep the reasoning of earlier assistant turns in the prompt.
      template: "default" or "released", see `text.render`.
      split_think: False gives the reply as it was written, tags and all, as one part, "answer".
      skip_special: False keeps special strings that the model writes in the text; one that ends it is never part of it.
      priority: smaller ones start first.
      owner: among requests of one priority, owners take turns.
      long_audio: hear the longest clip of the last human turn in windows where it does not fit (`long_audio.generate`);
        None refuses, as the engine itself always does.
      id: returned with every event; made up if not given.
    """

    conversation: Conversation | None = None
    sampling: SamplingParams = SamplingParams()
    thinking: bool = True
    keep_think: bool = False
    template: str = "default"
    split_think: bool = True
    skip_special: bool = True
    token_ids: tuple[int, ...] | None = None
    priority: int = 0
    owner: str = ""
    long_audio: LongAudio | None = None
    id: str = dataclasses.field(default_factory=lambda: f"request-{next(_ids)}")

    def __post_init__(self):
        given = "both" if self.conversation and self.token_ids else "neither"
        _check(bool(self.conversation) != bool(self.token_ids), "prompt", "a conversation or token_ids", given)


@dataclasses.dataclass(frozen=True)
class Usage:
    """Sizes of a request; `audio_tokens` are among the `prompt_tokens`, as are the `cached_tokens`, whose keys and
    values an earlier prompt had left."""

    audio_seconds: float
    audio_tokens: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """A token that was written: its log-probability as in `Completion.log_probs`, and the (id, log-probability) of the
    likeliest ones in its place, best first, as many as `SamplingParams.top_log_probs` asks for."""

    token_id: int
    log_prob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote.

    Attributes:
      token_ids: every token, the one that ended it included.
      log_probs: of each token under the model's distribution at the sampling temperature (at 1 when greedy), before
        top-k, top-p, min-p and repetition penalty; None for a forced token.
      forced: whether each token was put there (a closed think budget) and not chosen by the model.
      top_log_probs: of each token, see `TokenScore.top`; empty where not asked for.
      finish_reason: "stop" or "length".
      stop_reason: the special string or stop string that ended it, or "length".
      text: as written, tags included.
      think, answer: its two parts; `complete` says that the think block was closed.
      windows: of sound that was split, what the model wrote about each window; `usage` then counts all that was asked.
        Answers that were joined leave no tokens of their own.
      merges: answers on the way to this one, where those of all windows did not fit into one prompt.
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
    top_log_probs: tuple[tuple[tuple[int, float], ...], ...] = ()
    windows: tuple[WindowReply, ...] = ()
    merges: tuple[WindowReply, ...] = ()


@dataclasses.dataclass(frozen=True)
class WindowReply:
    """What the model wrote about the sound from `start` to `stop`, in seconds of the clip."""

    start: float
    stop: float
    completion: Completion


@dataclasses.dataclass(frozen=True)
class AudioProgress:
    """So many of a request's audio chunks have been encoded."""

    done: int
    total: int
    request_id: str = ""


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """A piece of text as it is written; `part` is "think" or "answer". `tokens`: those written since the piece before,
    which need not be all of this piece's text, for a piece may wait for the end of a letter or of a stop string."""

    request_id: str
    part: str
    text: str
    tokens: tuple[TokenScore, ...] = ()


@dataclasses.dataclass(frozen=True)
class Finished:
    completion: Completion

    @property
    def request_id(self) -> str:
        return self.completion.request_id


@dataclasses.dataclass(frozen=True)
class SoundSplit:
    """A request's sound is too long for one prompt and will be heard in these windows, (start, stop) in seconds."""

    request_id: str
    windows: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class WindowFinished:
    """Window `number`, counted from 1, has been answered."""

    request_id: str
    number: int
    reply: WindowReply


Event = AudioProgress | TextDelta | Finished
SplitEvent = Event | SoundSplit | WindowFinished
"""What a session tells of a request whose sound it may have split."""

Generate = Callable[[Iterable[Request]], Iterator[Event]]
