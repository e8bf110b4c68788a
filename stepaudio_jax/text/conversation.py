"""The one shape of a dialogue: training data, `ask`, the server, judges and RL all speak it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AUDIO_PLACEHOLDER = "<audio_patch>"


@dataclasses.dataclass(frozen=True)
class Text:
    """Words. Special strings inside (`<|EOT|>`, `<audio_patch>`…) are ordinary text unless `allow_special`,
    so that what a user types can never open or close a turn."""

    text: str
    allow_special: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Audio:
    """Sound: float32 samples, shape [samples], 16 kHz, mono. `name` is for messages to people."""

    samples: np.ndarray
    name: str = "audio"

    @property
    def seconds(self) -> float:
        return len(self.samples) / 16000


Part = Text | Audio


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a dialogue.

    Attributes:
      role: `system`, `human`, `assistant`, `tool_json_schemas`, or any other name, passed through.
      parts: text and audio in the order they are heard and read. For an assistant the reply, without thinking.
      think: an assistant's reasoning; None for none (rendered as the empty think where the model would think).
      loss: whether the turn is trained on; None means the rule of the recipe, assistant turns only.
      complete: False leaves a last assistant turn open, to be continued.
      extra: columns of the source record that no part of the model reads.
    """

    role: str
    parts: tuple[Part, ...] = ()
    think: str | None = None
    loss: bool | None = None
    complete: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "role", "human" if self.role == "user" else self.role)
        if self.think is not None and self.role != "assistant":
            raise ValueError(f"think: only an assistant turn has one, found it on a {self.role} turn")
        if not self.complete and self.role != "assistant":
            raise ValueError(f"complete: only an assistant turn can be left open, found False on a {self.role} turn")

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def audio(self) -> tuple[Audio, ...]:
        return tuple(part for part in self.parts if isinstance(part, Audio))


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Turns in order; `tools` is the JSON text of tool schemas, sent right after the system turn."""

    turns: tuple[Turn, ...]
    tools: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for turn in self.turns[:-1]:
            if not turn.complete:
                raise ValueError("complete: only the last turn of a conversation can be left open")

    @property
    def audio(self) -> tuple[Audio, ...]:
        return tuple(clip for turn in self.turns for clip in turn.audio)


def system(text: str) -> Turn:
    return Turn("system", (Text(text),))


def human(*parts: Part | str) -> Turn:
    """A human turn from strings and clips: `human(Audio(samples), "What is this?")`."""
    return Turn("human", _parts(parts))


def assistant(*parts: Part | str, think: str | None = None, loss: bool | None = None, complete: bool = True) -> Turn:
    return Turn("assistant", _parts(parts), think=think, loss=loss, complete=complete)


def with_placeholders(text: str, clips: Sequence[Audio], placeholder: str = AUDIO_PLACEHOLDER) -> tuple[Part, ...]:
    """Splits text at each placeholder and puts the clips there, dropping a newline right after it.

    Raises:
      ValueError: the number of placeholders is not the number of clips.
    """
    pieces = text.split(placeholder)
    if len(pieces) - 1 != len(clips):
        raise ValueError(f"{len(pieces) - 1} {placeholder} in the text but {len(clips)} audio clips")
    parts: list[Part] = [Text(pieces[0])] if pieces[0] else []
    for clip, piece in zip(clips, pieces[1:], strict=True):
        parts.append(clip)
        if piece := piece.removeprefix("\n"):
            parts.append(Text(piece))
    return tuple(parts)


def _parts(parts: Sequence[Part | str]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)
