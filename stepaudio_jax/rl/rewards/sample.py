"""What a reward sees of a sampled reply, and what becomes of it: a value or an error, never both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float

    from stepaudio_jax.inference.types import Completion

ERROR_KINDS = ("raised", "hung", "died", "garbage", "unsendable")
"""The first word of `Scored.error`: the reward raised, went over its time, ended its process, returned something other
than a number within its bounds; or the sample could not be handed to a worker process."""

NOTES = ("over_limits",)
"""What there may be to count about a value: it is that of a wrong answer, since what the reply itself wrote cannot be
evaluated within limits."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sampled reply beside what is true.

    Attributes:
      think, answer: the reply's two parts (`text.parse_reply`).
      complete: the think block was closed.
      truncated: the reply was cut off at its length; its accuracy is 0 (RECIPE §3).
      truth: in any form that the reward understands.
      extra: the record's other columns.
    """

    think: str
    answer: str
    complete: bool
    truncated: bool
    truth: Any
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, completion: Completion, truth: Any, extra: Mapping[str, Any] | None = None) -> Sample:
        truncated = completion.finish_reason == "length"
        return cls(completion.think, completion.answer, completion.complete, truncated, truth, extra or {})


@dataclasses.dataclass(frozen=True)
class Scored:
    """A reward's value, finite in float32, or why there is none: "kind: what happened", kind being of ERROR_KINDS.

    Attributes:
      notes: what there is to count about it, of NOTES.

    Raises:
      ValueError: both or neither are given, an error of no kind, or an unknown note.
    """

    value: float | None
    error: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.value is None) == (self.error is None):
            raise ValueError(f"scored: expected a value or an error, found {self.value} and {self.error}")
        if self.error is not None and self.kind not in ERROR_KINDS:
            raise ValueError(f"error: expected one of {', '.join(ERROR_KINDS)} before a colon, found {self.error}")
        if not set(self.notes) <= set(NOTES):
            raise ValueError(f"notes: expected some of {', '.join(NOTES)}, found {self.notes}")

    @property
    def kind(self) -> str | None:
        return None if self.error is None else self.error.partition(":")[0]


def to_arrays(scored: Sequence[Scored]) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Values in float32 and where there is one; elsewhere the value is 0 and must be masked out, never learnt from."""
    import numpy as np  # workers, which import this file, do without

    valid = np.array([each.value is not None for each in scored], bool)
    return np.array([each.value or 0.0 for each in scored], np.float32), valid
