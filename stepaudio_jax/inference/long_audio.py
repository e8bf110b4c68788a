"""Sound that does not fit into one prompt: heard in windows that overlap, whose answers are merged. Nothing is dropped.

request ─ split ─ one request a window ─┬─ together in the engine's batch ─┬─ merged (merging.py) ─ one answer
                                        └─ "[Sound from 0:44:00 to …]" ────┘
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from stepaudio_jax.audio import SAMPLE_RATE, lengths
from stepaudio_jax.data import encode
from stepaudio_jax.inference.engine import Engine
from stepaudio_jax.inference.merging import Merger, Rounds, clock, joined
from stepaudio_jax.inference.refusal import PromptError
from stepaudio_jax.inference.types import (
    AudioProgress,
    Completion,
    Event,
    Finished,
    Generate,
    LongAudio,
    Request,
    SoundSplit,
    SplitEvent,
    TextDelta,
    WindowFinished,
    WindowReply,
)
from stepaudio_jax.inference.windows import cut
from stepaudio_jax.text import Audio, Conversation, Text

OVERLAP_SECONDS = 30.0
SPARE = 16
"""Tokens by which the text of a note may be longer than another's of as many letters."""

WHICH = "[Sound from {start} to {stop} of a recording of {length}.]\n"


def generate(engine: Engine, requests: Iterable[Request]) -> Iterator[SplitEvent]:
    """`Engine.generate`, but for requests whose `long_audio` says how to split what does not fit: those come last, one
    after another, all windows of one together."""
    split: list[Plan] = []

    def fitting() -> Iterator[Request]:
        for request in requests:
            plan = Plan.of(engine, request)
            if plan is None:
                yield request
            else:
                split.append(plan)

    yield from engine.generate(fitting())
    for plan in split:
        yield from answer(engine.generate, plan)


def answer(generate: Generate, plan: Plan) -> Iterator[SplitEvent]:
    """Events of a request that is split: its windows, what was answered about each, then the one answer."""
    under_way = Answering(plan)
    yield under_way.began
    while under_way.batch:
        for event in generate(under_way.batch):
            yield from under_way.feed(event)


class Answering:
    """A request that is split, under way, for a caller who runs requests in a loop of his own.

    Attributes:
      began: the event to begin with.
      batch: requests to be run now, together; none once the answer is there.
    """

    def __init__(self, plan: Plan):
        self.id = plan.request.id
        self.began = SoundSplit(self.id, plan.windows)
        self._plan, self._rounds = plan, plan.rounds()
        self._numbers = {request.id: number for number, request in enumerate(plan.requests, 1)}
        self._heard = dict.fromkeys(self._numbers, 0)
        self._done: dict[str, Completion] = {}
        self.batch: Sequence[Request] = next(self._rounds)

    def feed(self, event: Event) -> list[SplitEvent]:
        """What an event of one of the batch's requests tells about the whole. After the last of a batch, `batch` is the
        next."""
        name = event.request_id
        number = self._numbers.get(name)
        if isinstance(event, AudioProgress) and number:
            self._heard[name] = event.done
            return [AudioProgress(sum(self._heard.values()), self._plan.chunks, self.id)]
        if isinstance(event, TextDelta) and name == self.id:
            return [event]
        if not isinstance(event, Finished):
            return []
        self._done[name] = event.completion
        events: list[SplitEvent] = []
        if number:
            reply = WindowReply(*self._plan.windows[number - 1], event.completion)
            events.append(WindowFinished(self.id, number, reply))
        if len(self._done) == len(self.batch):
            events += self._next()
        return events

    def _next(self) -> list[SplitEvent]:
        done, self._done, self.batch = self._done, {}, ()
        try:
            self.batch = self._rounds.send(done)
        except StopIteration as end:
            whole: Completion = end.value
            parts = () if whole.token_ids else (("think", whole.think), ("answer", whole.answer))
            return [*(TextDelta(self.id, part, text) for part, text in parts if text), Finished(whole)]
        return []


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a request's sound is heard in windows.

    Attributes:
      windows: (start, stop) in seconds of the clip.
      requests: one for each.
      chunks: of sound, in all of them.
    """

    request: Request
    options: LongAudio
    windows: tuple[tuple[float, float], ...]
    requests: tuple[Request, ...]
    chunks: int
    merger: Merger | None

    @classmethod
    def of(cls, engine: Engine, request: Request) -> Plan | None:
        """None for a request that is to be answered as it is, be it that the engine refuses it.

        Raises:
          PromptError: no window fits beside the rest of the prompt, or not the one that is asked for, or the answers
            could not be merged.
          AudioError: a clip too short for one audio token.
        """
        options, place = request.long_audio, longest_clip(request.conversation)
        if options is None or place is None:
            return None
        room = engine.room
        reply = min(request.sampling.max_new_tokens, room // 2)
        clip = place.clip
        if _size(engine, request) + reply <= room and clip.seconds <= (options.window_seconds or clip.seconds):
            return None

        def asking(samples, start: float, stop: float, name: str) -> Request:
            which = WHICH.format(start=clock(start), stop=clock(stop), length=clock(clip.seconds))
            parts = (Text(which), *([] if samples is None else [Audio(samples, f"{clip.name}, {clock(start)}")]))
            return dataclasses.replace(place.put(request, *parts), id=f"{request.id}-{name}")

        frame = _size(engine, asking(None, clip.seconds, clip.seconds, "frame")) + SPARE
        longest = _longest_window(len(clip.samples), room - reply - frame, engine.length_rule)
        if longest < SAMPLE_RATE:
            raise PromptError(
                f"long_audio: beside {clip.name} the prompt has {frame} tokens and its reply may have {reply}, which "
                f"leaves no second of sound in {room}; ask with less text, fewer other sounds, a smaller max_new_tokens"
            )
        longest, overlap = _chosen(options, longest)
        windows = cut(clip.samples, longest, overlap)
        seconds = tuple((start / SAMPLE_RATE, stop / SAMPLE_RATE) for start, stop in windows)
        requests = tuple(
            asking(clip.samples[slice(*window)], *times, f"window-{number}")
            for number, (window, times) in enumerate(zip(windows, seconds, strict=True), 1)
        )
        chunks = sum(len(engine.prepare(one).chunks) for one in requests)  # all is refused before any is computed
        merger = _merger(engine, request, place) if options.merge == "ask" else None
        return cls(request, options, seconds, requests, chunks, merger)

    def rounds(self) -> Rounds:
        """The requests to be run, for a caller with a loop of his own: first those of the windows, then what merging
        takes; the last has the id of the whole."""
        done = yield list(self.requests)
        replies = [
            WindowReply(*window, done[request.id]) for window, request in zip(self.windows, self.requests, strict=True)
        ]
        if self.merger is None:
            return joined(self.request.id, replies)
        return (yield from self.merger.rounds(replies))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a conversation a clip is."""

    turn: int
    part: int
    clip: Audio

    def put(self, request: Request, *parts: Text | Audio) -> Request:
        """The request with these in the clip's place."""
        assert request.conversation is not None
        turns = list(request.conversation.turns)
        old = turns[self.turn].parts
        new = (*old[: self.part], *parts, *old[self.part + 1 :])
        turns[self.turn] = dataclasses.replace(turns[self.turn], parts=new)
        conversation = dataclasses.replace(request.conversation, turns=tuple(turns))
        return dataclasses.replace(request, conversation=conversation, long_audio=None)


def longest_clip(conversation: Conversation | None) -> Place | None:
    """Of the last human turn; None where there is no sound in it."""
    turns = conversation.turns if conversation else ()
    number = max((i for i, turn in enumerate(turns) if turn.role == "human"), default=None)
    if number is None:
        return None
    clips = [Place(number, i, part) for i, part in enumerate(turns[number].parts) if isinstance(part, Audio)]
    return max(clips, key=lambda place: len(place.clip.samples), default=None)


def _size(engine: Engine, request: Request) -> int:
    """Tokens of a prompt."""
    assert request.conversation is not None
    return encode(
        request.conversation,
        engine.tokenizer,
        length_rule=engine.length_rule,
        generate=True,
        thinking=request.thinking,
        keep_think=request.keep_think,
        template=request.template,
    ).num_tokens


def _longest_window(samples: int, tokens: int, length_rule: str) -> int:
    """The most samples, of so many, that become no more than so many tokens, `<audio_start>` and `<audio_end>` of every
    chunk among them."""

    def needed(count: int) -> int:
        whole, rest = divmod(count, lengths.CHUNK_SAMPLES)
        each = int(lengths.audio_tokens(lengths.CHUNK_SAMPLES, length_rule)) + 2
        return whole * each + (max(int(lengths.audio_tokens(rest, length_rule)), 0) + 2 if rest else 0)

    return bisect.bisect_right(range(samples + 1), tokens, key=needed) - 1


def _chosen(options: LongAudio, longest: int) -> tuple[int, int]:
    """Samples of a window and of an overlap."""
    if options.window_seconds is not None:
        if options.window_seconds * SAMPLE_RATE > longest:
            raise PromptError(
                f"window_seconds: expected at most {longest / SAMPLE_RATE:.1f}, which is what fits beside the prompt "
                f"and its reply, found {options.window_seconds:g}"
            )
        longest = round(options.window_seconds * SAMPLE_RATE)
    overlap = options.overlap_seconds
    if overlap is None:
        return longest, min(round(OVERLAP_SECONDS * SAMPLE_RATE), longest // 4)
    if 2 * overlap * SAMPLE_RATE > longest:
        raise PromptError(
            f"overlap_seconds: expected at most half a window of {longest / SAMPLE_RATE:.1f} s, found {overlap:g}"
        )
    return longest, round(overlap * SAMPLE_RATE)


def _merger(engine: Engine, request: Request, place: Place) -> Merger:
    seconds, room = place.clip.seconds, engine.room

    def ask(text: str) -> Request:
        return place.put(request, Text(text))

    frame = _size(engine, ask(Merger.frame(seconds))) + SPARE
    merger = Merger(
        request.id,
        ask,
        lambda text: len(engine.tokenizer.encode(text)),
        room - frame - min(request.sampling.max_new_tokens, room // 4),
        seconds,
    )
    if merger.budget < max(room // 4, 6 * merger.heading):
        raise PromptError(
            f"merge: beside the windows' answers the prompt has {frame} tokens of {room}, too many for merging them by "
            'asking; ask with less text and fewer other sounds, or choose merge="join" (--merge join)'
        )
    return merger
