"""An engine without a model: it writes the same to everyone, as slowly as a test wants, and can be made to fail."""

import dataclasses
import time

from stepaudio_jax.inference import (
    AudioProgress,
    Completion,
    EngineStats,
    Event,
    Finished,
    QueueFull,
    Request,
    TextDelta,
    TokenScore,
    Usage,
)
from tests import small

WORDS = ["I", "hear", "a", "tone.", "</think>", "It", "is", "a", "tone."]


@dataclasses.dataclass(frozen=True)
class FakePrepared:
    request: Request


class FakeEngine:
    """Attributes:
    seconds: that a step takes.
    failing: how many of the next steps raise.
    hurt: cancelling raises too, which no engine survives.
    added, cancelled: ids, in order.
    """

    def __init__(self, *, max_rows: int = 4, max_waiting: int = 1000, seconds: float = 0.0):
        self.tokenizer, self.max_length = small.tokenizer(), 512
        self.max_rows, self.max_waiting, self.seconds = max_rows, max_waiting, seconds
        self.failing, self.hurt = 0, False
        self.added: list[str] = []
        self.cancelled: list[str] = []
        self._waiting: list[Request] = []
        self._rows: dict[str, tuple[Request, int]] = {}
        self._written = 0

    def prepare(self, request: Request) -> FakePrepared:
        return FakePrepared(request)

    def add(self, prepared: FakePrepared):
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests wait already")
        self._waiting.append(prepared.request)
        self.added.append(prepared.request.id)

    def cancel(self, request_id: str):
        if self.hurt:
            raise RuntimeError("cannot even cancel")
        if request_id in self._rows or any(request.id == request_id for request in self._waiting):
            self.cancelled.append(request_id)
        self._rows.pop(request_id, None)
        self._waiting = [request for request in self._waiting if request.id != request_id]

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._rows)

    @property
    def running(self) -> list[str]:
        return list(self._rows)

    def step(self) -> list[Event]:
        time.sleep(self.seconds)
        if self.failing:
            self.failing -= 1
            raise RuntimeError("secret of the engine")
        while self._waiting and len(self._rows) < self.max_rows:
            request = self._waiting.pop(0)
            self._rows[request.id] = (request, 0)
        events: list[Event] = []
        for request_id, (request, size) in list(self._rows.items()):
            if size == 0 and request.conversation and request.conversation.audio:
                events.append(AudioProgress(2, 2, request_id))
            events.append(self._write(request, size))
            self._rows[request_id] = (request, size + 1)
            if size + 1 == request.sampling.max_new_tokens:
                events.append(Finished(self._completion(request, size + 1)))
                del self._rows[request_id]
        self._written += len(events)
        return events

    def stats(self) -> EngineStats:
        used = 10 * len(self._rows)
        return EngineStats(
            running=len(self._rows),
            waiting=len(self._waiting),
            pages_total=100,
            pages_used=used,
            pages_cached=0,
            prompt_tokens=0,
            cached_prompt_tokens=0,
            generated_tokens=self._written,
            sounds_encoded=0,
            sounds_found=0,
            interruptions=0,
        )

    def _write(self, request: Request, at: int) -> TextDelta:
        word = WORDS[at % len(WORDS)]
        part = "think" if request.split_think and at < 4 else "answer"
        text = "" if word == "</think>" and request.split_think else word + " "
        return TextDelta(request.id, part, text, (TokenScore(at % 500, -0.5),))

    def _completion(self, request: Request, size: int) -> Completion:
        return Completion(
            request_id=request.id,
            token_ids=tuple(i % 500 for i in range(size)),
            log_probs=(-0.5,) * size,
            forced=(False,) * size,
            finish_reason="length",
            stop_reason="length",
            text="",
            think="",
            answer="",
            complete=True,
            usage=Usage(audio_seconds=0, audio_tokens=0, prompt_tokens=7, completion_tokens=size),
        )
