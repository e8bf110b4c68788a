"""Ask many questions, score each answer, and say how sure the mean is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from stepaudio_jax.inference.types import Completion, Finished, Generate, Request


@dataclasses.dataclass(frozen=True)
class Item:
    """One question: what is asked, what is true (in any form its scorer understands), and its group."""

    request: Request
    truth: Any
    group: str = "all"


Scorer = Callable[[Completion, Any], float]
"""(completion, truth) → a score between 0 and 1."""


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval: Wilson's for scores of 0 and 1, else the normal one."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Score:
        n = len(scores)
        if n == 0:
            return cls(0, math.nan, math.nan, math.nan)
        mean = sum(scores) / n
        z = 1.959964
        if all(score in (0, 1) for score in scores):
            centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
            half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
            return cls(n, mean, centre - half, centre + half)
        variance = sum((score - mean) ** 2 for score in scores) / max(n - 1, 1)
        half = z * math.sqrt(variance / n)
        return cls(n, mean, mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores by group and over all items, and every completion beside its item."""

    groups: dict[str, Score]
    overall: Score
    answers: tuple[tuple[Item, Completion, float], ...]

    def table(self, title: str = "") -> Table:
        table = Table(title=title or None)
        for column in ("group", "n", "mean", "95 % interval"):
            table.add_column(column, justify="left" if column == "group" else "right")
        for name, score in [*self.groups.items(), ("all", self.overall)]:
            if name == "all":
                table.add_section()
            table.add_row(name, str(score.n), f"{score.mean:.3f}", f"{score.low:.3f} – {score.high:.3f}")
        return table


def evaluate(
    generate: Generate,
    items: Iterable[Item],
    scorer: Scorer,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Result:
    """Asks every item and scores every answer; no item is dropped.

    Args:
      progress: called with the number of items answered so far.

    Raises:
      ValueError: two items share a request id, or the generator left a request without an answer.
    """
    waiting: dict[str, Item] = {}
    answers: list[tuple[Item, Completion, float]] = []

    def requests() -> Iterator[Request]:
        for item in items:
            if item.request.id in waiting:
                raise ValueError(f"request id: {item.request.id} is used twice")
            waiting[item.request.id] = item
            yield item.request

    for event in generate(requests()):
        if isinstance(event, Finished):
            item = waiting.pop(event.request_id)
            answers.append((item, event.completion, float(scorer(event.completion, item.truth))))
            progress(len(answers))
    if waiting:
        raise ValueError(f"{len(waiting)} requests were never answered, {next(iter(waiting))} among them")
    by_group: dict[str, list[float]] = {}
    for item, _, score in answers:
        by_group.setdefault(item.group, []).append(score)
    return Result(
        {name: Score.of(scores) for name, scores in sorted(by_group.items())},
        Score.of([score for *_, score in answers]),
        tuple(answers),
    )
