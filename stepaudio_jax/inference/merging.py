"""One answer from those about the windows of a long recording.

"ask": the model reads all answers, each under the minutes it is about, in the place of the recording, and answers the
question itself. Where they do not fit into one prompt, groups of them are first shortened to one text each, and so on.

"join": the answers one after another (seams.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple

from stepaudio_jax.inference import seams
from stepaudio_jax.inference.types import Completion, Request, Usage, WindowReply

Rounds = Generator[list[Request], dict[str, Completion], Completion]
"""Gives requests that may run together, is sent their completions by id, and returns the answer to the whole."""

WORDS_A_SECOND = 8
"""More than anyone speaks, and than characters are read out."""

HEADING = "[A recording of {length}, heard in parts that overlap. What was answered about each:]\n\n"
TASK = "[End of the answers. Answer for the whole recording.]\n"
TASK_OF_A_GROUP = "[End of the answers. Put them together into one shorter text that keeps what matters.]\n"
CUT_OFF = "\n(Cut off here.)"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Note(NamedTuple):
    """What was answered about the sound from `start` to `stop`, in seconds."""

    start: float
    stop: float
    text: str

    def __str__(self):
        return f"[{clock(self.start)} to {clock(self.stop)}]\n{self.text}\n\n"

    @classmethod
    def of(cls, reply: WindowReply) -> Note:
        """Thoughts, if it was cut off before an answer."""
        done = reply.completion
        text = done.answer or (f"(No answer yet, only thoughts.) {done.think}" if done.think else "(No answer.)")
        return cls(reply.start, reply.stop, text + (CUT_OFF if done.finish_reason == "length" else ""))


def total_usage(completions: Sequence[Completion]) -> Usage:
    each = [dataclasses.astuple(completion.usage) for completion in completions]
    return Usage(*(sum(values) for values in zip(*each, strict=True)))


def joined(request_id: str, replies: Sequence[WindowReply]) -> Completion:
    """The answers one after another, as one completion. Thoughts stand under the minutes they are about."""
    done = [reply.completion for reply in replies]
    cut = [completion for completion in done if completion.finish_reason == "length"]
    overlap = max((left.stop - right.start for left, right in itertools.pairwise(replies)), default=0.0)
    answers = [r.completion.answer or f"[{clock(r.start)} to {clock(r.stop)}: no answer]" for r in replies]
    answer = seams.join(answers, math.ceil(WORDS_A_SECOND * overlap))
    think = "".join(str(Note(reply.start, reply.stop, reply.completion.think)) for reply in replies).strip()
    return Completion(
        request_id=request_id,
        token_ids=(),
        log_probs=(),
        forced=(),
        finish_reason="length" if cut else "stop",
        stop_reason="length" if cut else done[-1].stop_reason,
        text=answer,
        think=think if any(completion.think for completion in done) else "",
        answer=answer,
        complete=all(completion.complete for completion in done),
        usage=total_usage(done),
        windows=tuple(replies),
    )


@dataclasses.dataclass(frozen=True)
class Merger:
    """Asks for one answer.

    Attributes:
      request_id: of the whole.
      ask: the request with a text in the place of the recording.
      tokens: how many a text has.
      budget: tokens of notes that fit into one prompt, many times `heading`.
      length: of the recording, in seconds.
    """

    request_id: str
    ask: Callable[[str], Request]
    tokens: Callable[[str], int]
    budget: int
    length: float

    @staticmethod
    def frame(length: float) -> str:
        """What stands around the notes, at its longest."""
        return HEADING.format(length=clock(length)) + max(TASK, TASK_OF_A_GROUP, key=len)

    @property
    def heading(self) -> int:
        """Tokens of a note beside its own text."""
        return self._size(Note(self.length, self.length, CUT_OFF))

    def rounds(self, replies: Sequence[WindowReply]) -> Rounds:
        notes, merges = self._fitting(map(Note.of, replies)), []
        while (size := self._total(notes)) > self.budget:
            groups = self._groups(notes)
            requests = [self._shorten(group, f"{len(merges)}-{number}") for number, group in enumerate(groups)]
            done = yield requests
            notes = []
            for group, request in zip(groups, requests, strict=True):
                merges.append(WindowReply(group[0].start, group[-1].stop, done[request.id]))
                notes += self._fitting([Note.of(merges[-1])]) if done[request.id].answer else group
            if self._total(notes) >= size:  # it does not shorten: rather all of it than nothing
                usage = total_usage([reply.completion for reply in (*replies, *merges)])
                return dataclasses.replace(joined(self.request_id, replies), usage=usage, merges=tuple(merges))
        answer = (yield [self.ask(self._text(notes, TASK))])[self.request_id]
        usage = total_usage([*(reply.completion for reply in (*replies, *merges)), answer])
        return dataclasses.replace(answer, usage=usage, windows=tuple(replies), merges=tuple(merges))

    def _total(self, notes: Sequence[Note]) -> int:
        return sum(map(self._size, notes))

    def _size(self, note: Note) -> int:
        return self.tokens(str(note))

    def _text(self, notes: Sequence[Note], task: str) -> str:
        return HEADING.format(length=clock(self.length)) + "".join(map(str, notes)) + task

    def _shorten(self, group: Sequence[Note], name: str) -> Request:
        """One text of a group, at once and so short that three of them fit into a prompt."""
        request = self.ask(self._text(group, TASK_OF_A_GROUP))
        most = self.budget // 3 - self.heading
        sampling = dataclasses.replace(request.sampling, max_new_tokens=min(request.sampling.max_new_tokens, most))
        return dataclasses.replace(request, sampling=sampling, thinking=False, id=f"{request.id}-merge-{name}")

    def _groups(self, notes: Sequence[Note]) -> list[list[Note]]:
        """Neighbours together, as many as fit into a prompt."""
        groups, room = [], 0
        for note in notes:
            size = self._size(note)
            if size > room:
                groups.append([])
                room = self.budget
            groups[-1].append(note)
            room -= size
        return groups

    def _fitting(self, notes: Iterable[Note]) -> list[Note]:
        """The notes, those that fill more than a prompt in parts."""
        out: list[Note] = []
        for note in notes:
            if self._size(note) <= self.budget:
                out.append(note)
            else:
                half = len(note.text) // 2
                middle = note.text.find(" ", half, half + half // 2) + 1 or half
                out += self._fitting([note._replace(text=note.text[:middle]), note._replace(text=note.text[middle:])])
        return out
