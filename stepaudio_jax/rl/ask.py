"""Every prompt of some sources answered so many times, and what is made of the replies written, prompt by prompt.

    FOLDER/about.json         what was asked, with which model and seed; another question needs another folder
    FOLDER/prompts.jsonl      of each prompt in turn what `digest` makes of its replies
    FOLDER/replies-N.jsonl    the journal of the rollout that begins with prompt N, while it runs

Ended at any moment it goes on where it was, to the same lines.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.inference import Engine, SamplingParams
from stepaudio_jax.rl.prompts import Source
from stepaudio_jax.rl.rollout import Prompt, Sampled, rollout

AT_ONCE = 64
"""Prompts of one rollout, after which their lines are written."""

MOST = 10_000_000
"""Records of a source; more is the small world without a number of them."""

Digest = Callable[[Sequence[Prompt], Sequence[Sequence[Sampled]]], Sequence[dict[str, Any]]]
"""(prompts, the replies to each) → a line of JSON for each."""


@dataclasses.dataclass(frozen=True)
class Asking:
    """How prompts are answered; part of what names a folder's question.

    Attributes:
      samples: replies to each.
      model: the policy's name.
    """

    samples: int
    sampling: SamplingParams
    seed: int
    model: str


def ask_all(
    engine: Engine,
    sources: Sequence[Source],
    asking: Asking,
    digest: Digest,
    folder: epath.PathLike,
    *,
    records: Mapping[str, Sequence[int]] | None = None,
    what: str = "replies",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """The lines of all prompts, each with `source` and `record` in it.

    Args:
      records: of each source those to ask; by default all.
      what: a word for the progress bar.

    Raises:
      ValueError: a source without an end, or a folder of another question.
    """
    folder, console = epath.Path(folder), console or Console(stderr=True)
    chosen = []
    for source in sources:
        if records is None and len(source) > MOST:
            raise ValueError(f"prompts.{source.name}: expected a number of records, e.g. records=1000, found no end")
        chosen += [(source, int(i)) for i in (range(len(source)) if records is None else records[source.name])]
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, asking, sources, len(chosen))
    lines = _read(folder / "prompts.jsonl", len(chosen))
    if lines:
        console.print(f"{what}: goes on after {len(lines):,} of {len(chosen):,} prompts", highlight=False)
    with _progress(console) as bars:
        samples = asking.samples
        bar = bars.add_task(what, total=len(chosen) * samples, completed=len(lines) * samples)
        while len(lines) < len(chosen):
            first = len(lines)
            some = chosen[first : first + AT_ONCE]
            prompts = [source.prompt(record) for source, record in some]
            journal = folder / f"replies-{first:08d}.jsonl"
            sampled = rollout(
                engine, prompts, samples, asking.sampling, (asking.seed, first),
                journal=journal, progress=lambda _: bars.advance(bar),
            )  # fmt: skip
            replies = [sampled[at : at + samples] for at in range(0, len(sampled), samples)]
            new = [
                {"source": source.name, "record": record} | line
                for (source, record), line in zip(some, digest(prompts, replies), strict=True)
            ]
            with (folder / "prompts.jsonl").open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in new))
            lines += new
            for finished in folder.glob("replies-*.jsonl"):
                finished.unlink()
    return lines


def _check_folder(folder: epath.Path, asking: Asking, sources: Sequence[Source], prompts: int):
    about = dataclasses.asdict(asking) | {"sources": {s.name: len(s) for s in sources}, "prompts": prompts}
    about = json.loads(json.dumps(about))
    path = folder / "about.json"
    if not path.exists():
        write_whole(path, (json.dumps(about, indent=2, sort_keys=True) + "\n").encode())
    elif (before := json.loads(path.read_text())) != about:
        differs = sorted(name for name in about if before.get(name) != about[name])
        raise ValueError(f"{folder}: was begun with other {', '.join(differs)}; name another folder")


def _read(path: epath.Path, prompts: int) -> list[dict[str, Any]]:
    """The whole lines there are, of whole rollouts: a reply's seed goes by its rollout's first prompt."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text.split("\n")[:-1]
    if len(whole) < prompts:
        whole = whole[: len(whole) // AT_ONCE * AT_ONCE]
    if (kept := "".join(f"{line}\n" for line in whole)) != text:
        write_whole(path, kept.encode())
    return [json.loads(line) for line in whole]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)
