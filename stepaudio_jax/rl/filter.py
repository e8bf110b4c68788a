"""Which prompts are worth training on: those that the present policy answers right sometimes (R1 §4.1: 3 to 6 of 8).

FOLDER/prompts.jsonl    of each prompt how many replies were right, and could be scored (and the rest of ask.py)
FOLDER/kept.json        the records kept, by source: `config.prompts.kept` of a run
FOLDER/report.html      how many prompts had how many right
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence

from etils import epath
from rich.console import Console
from rich.table import Table

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.inference import Engine
from stepaudio_jax.rl.ask import Asking, ask_all
from stepaudio_jax.rl.prompts import Source
from stepaudio_jax.rl.rewards import AnyReward, Reward
from stepaudio_jax.rl.scoring import Score

Bounds = tuple[int, int]
"""Least and most right replies of a prompt that is kept."""


@dataclasses.dataclass(frozen=True)
class Count:
    """Of one prompt: how many replies were right, of those that could be scored, of those that were written."""

    source: str
    record: int
    right: int
    scored: int
    samples: int

    def within(self, keep: Bounds) -> bool:
        """Is it kept? Not where any reply could not be scored."""
        return self.scored == self.samples and keep[0] <= self.right <= keep[1]


def accuracy_of(reward: AnyReward) -> AnyReward:
    """What says whether an answer is right: the reward itself, or the one that it wraps."""
    return reward.options.get("accuracy", reward) if isinstance(reward, Reward) else reward


def are_right(score: Score, prompts, replies) -> list[list[bool | None]]:
    """Of each reply to each prompt whether its answer is right (a reward of more than a half); None: not known."""
    of_accuracy = [dataclasses.replace(prompt, reward=accuracy_of(prompt.reward)) for prompt in prompts]
    asked = [prompt for prompt, own in zip(of_accuracy, replies, strict=True) for _ in own]
    values, valid, _ = score(asked, [each for own in replies for each in own])
    found = iter(zip((values > 0.5).tolist(), valid.tolist(), strict=True))
    return [[right if known else None for right, known in (next(found) for _ in own)] for own in replies]


def filter_prompts(
    engine: Engine,
    sources: Sequence[Source],
    score: Score,
    folder: epath.PathLike,
    asking: Asking,
    *,
    keep: Bounds = (3, 6),
    records: Mapping[str, Sequence[int]] | None = None,
    console: Console | None = None,
) -> list[Count]:
    """Answers every prompt so many times, counts what is right, and writes which prompts are kept. Other bounds on a
    folder that is finished ask nothing again.

    Args:
      records: as `ask_all`.

    Raises:
      ValueError: bounds that no count meets; as `ask_all`.
    """
    samples = asking.samples
    if not 0 <= keep[0] <= keep[1] <= samples:
        raise ValueError(f"keep: expected bounds from 0 to the {samples} samples, found {keep[0]} to {keep[1]}")

    def digest(prompts, replies):
        return [
            {"right": sum(each is True for each in own), "scored": sum(each is not None for each in own)}
            for own in are_right(score, prompts, replies)
        ]

    folder, console = epath.Path(folder), console or Console(stderr=True)
    lines = ask_all(engine, sources, asking, digest, folder, records=records, console=console)
    counts = [Count(**line, samples=samples) for line in lines]
    page = Console(record=True, file=io.StringIO(), width=100)
    for where in (console, page):
        where.print(table(counts, keep))
    (folder / "report.html").write_text(page.export_html())
    write_kept(folder / "kept.json", sources, [(c.source, c.record) for c in counts if c.within(keep)])
    return counts


def write_kept(path: epath.Path, sources: Sequence[Source], kept: Sequence[tuple[str, int]]):
    """What `prompts.read_kept` reads."""
    grouped = {s.name: {"records": len(s), "kept": [i for name, i in kept if name == s.name]} for s in sources}
    write_whole(path, (json.dumps({"sources": grouped}) + "\n").encode())


def table(counts: Sequence[Count], keep: Bounds, width: int = 40) -> Table:
    """A histogram: how many prompts had how many replies right, by source where there are several."""
    names = sorted({count.source for count in counts})
    samples = counts[0].samples if counts else 0
    whole = [count for count in counts if count.scored == count.samples]
    found = collections.Counter((count.source, count.right) for count in whole)
    left = sum(count.within(keep) for count in counts)
    rows = Table(
        title=f"replies right, of {samples}: {left:,} of {len(counts):,} prompts kept ({keep[0]} to {keep[1]} right)"
    )
    for name in ("right", "prompts", "", *(names if len(names) > 1 else ())):
        rows.add_column(name, justify="right" if name else "left")
    totals = [sum(found[name, right] for name in names) for right in range(samples + 1)]
    for right, total in enumerate(totals):
        bar = "█" * round(width * total / max(*totals, 1))
        own = [f"{found[name, right]:,}" for name in names] if len(names) > 1 else []
        rows.add_row(f"{right}", f"{total:,}", bar, *own, style="" if keep[0] <= right <= keep[1] else "dim")
    if unscored := len(counts) - len(whole):
        rows.add_row("not scored", f"{unscored:,}", style="dim")
    return rows
