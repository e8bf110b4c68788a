"""The dialogue of a page: what was asked and answered so far, as the model reads it, as it is shown, as it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from stepaudio_jax.inference import AudioProgress, Finished, SoundSplit, TextDelta, WindowFinished
from stepaudio_jax.inference.types import SplitEvent
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human


@dataclasses.dataclass(frozen=True)
class Round:
    """A question and the reply to it, as far as it has been written.

    Attributes:
      file: of the sound, for playing it back.
      warnings: of sound that is probably not what was meant.
      chunks: of its sound that have been heard, and of how many.
      windows: of sound that is heard in windows, those that have been answered, and of how many.
      tokens, think_tokens: written so far; `first_tokens` came together at `first_token`.
      asked, first_token, latest: in seconds of one clock.
      ended: "stop", "length", or "stopped" by whoever asked; "" while it is written.
    """

    question: str
    clip: Audio | None = None
    file: str | None = None
    warnings: tuple[str, ...] = ()
    think: str = ""
    answer: str = ""
    chunks: tuple[int, int] = (0, 0)
    windows: tuple[int, int] = (0, 0)
    tokens: int = 0
    think_tokens: int = 0
    first_tokens: int = 0
    asked: float = 0.0
    first_token: float | None = None
    latest: float = 0.0
    ended: str = ""

    def after(self, event: SplitEvent, now: float) -> Round:
        """With what an event adds."""
        if isinstance(event, AudioProgress):
            return dataclasses.replace(self, chunks=(event.done, event.total))
        if isinstance(event, SoundSplit):
            return dataclasses.replace(self, windows=(0, len(event.windows)))
        if isinstance(event, WindowFinished):
            return dataclasses.replace(self, windows=(self.windows[0] + 1, self.windows[1]))
        if isinstance(event, Finished):
            return dataclasses.replace(
                self,
                think=event.completion.think,
                answer=event.completion.answer,
                tokens=event.completion.usage.completion_tokens,
                latest=now,
                ended=event.completion.finish_reason,
            )
        if not isinstance(event, TextDelta):
            return self
        thinking, count = event.part == "think", len(event.tokens)
        first = {} if self.first_token is not None else {"first_token": now, "first_tokens": self.tokens + count}
        return dataclasses.replace(
            self,
            think=self.think + event.text * thinking,
            answer=self.answer + event.text * (not thinking),
            tokens=self.tokens + count,
            think_tokens=self.think_tokens + count * thinking,
            latest=now,
            **first,
        )

    def stopped(self) -> Round:
        return self if self.ended else dataclasses.replace(self, ended="stopped")

    @property
    def tokens_per_second(self) -> float | None:
        """Since the first token; None as long as there is only that, and where windows were written side by side."""
        seconds = self.latest - (self.first_token or self.latest)
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 and not self.windows[1] else None

    @property
    def status(self) -> str:
        """One line: where it is, how fast."""
        if self.first_token is None and not self.ended:
            heard, answered = self.chunks, self.windows
            parts = ["hearing"]
            parts += [f"{heard[0]} of {heard[1]} chunks of sound"] * (heard[1] > 1)
            parts += [f"{answered[0]} of {answered[1]} windows answered"] * (answered[1] > 0)
            return " · ".join([*parts, *self.warnings])
        parts = ["" if self.ended == "stop" else "cut off at its length" if self.ended == "length" else self.ended]
        if not self.ended:
            parts = ["answering" if self.answer else "thinking"]
        parts.append(f"{self.tokens} tokens ({self.think_tokens} of thinking)")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.first_token is not None:
            parts.append(f"first after {self.first_token - self.asked:.2f} s")
        return " · ".join(part for part in [*parts, *self.warnings] if part)

    def turns(self) -> tuple[Turn, ...]:
        """The question, and the reply where there is one."""
        sound = () if self.clip is None else (self.clip,)
        asked = human(*sound, *((self.question,) if self.question else ()))
        return (asked, assistant(self.answer, think=self.think or None)) if self.ended else (asked,)


def conversation(rounds: Sequence[Round]) -> Conversation:
    """What the model reads; the last round is the one to be answered."""
    return Conversation(tuple(turn for each in rounds for turn in each.turns()))


def messages(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """What gradio's Chatbot shows: the thinking is a block that unfolds while it is written and folds behind it."""
    shown: list[dict[str, Any]] = []
    for each in rounds:
        if each.file is not None:
            shown.append({"role": "user", "content": {"path": each.file}})
        if each.question:
            shown.append({"role": "user", "content": each.question})
        if each.think.strip():
            pending = not (each.answer or each.ended)
            title = "Thinking" if pending else f"Thought, {each.think_tokens} tokens"
            metadata = {"title": title, "status": "pending" if pending else "done"}
            shown.append({"role": "assistant", "content": each.think.strip(), "metadata": metadata})
        if each.answer.strip():
            shown.append({"role": "assistant", "content": each.answer.strip()})
    return shown


def transcript(rounds: Sequence[Round], model: str) -> str:
    """The dialogue as a text in Markdown."""
    parts = [f"# A dialogue with {model}"]
    for each in rounds:
        sound = f"*[{each.clip.name}, {each.clip.seconds:.1f} s of sound]*" if each.clip else ""
        parts.append("**You:** " + " ".join(part for part in (sound, each.question) if part))
        if each.think.strip():
            parts.append("> " + each.think.strip().replace("\n", "\n> "))
        if each.answer.strip() or each.ended:
            note = {"length": " *(cut off at its length)*", "stopped": " *(stopped)*"}.get(each.ended, "")
            parts.append(f"**{model}:** {each.answer.strip()}{note}")
    return "\n\n".join(parts) + "\n"
