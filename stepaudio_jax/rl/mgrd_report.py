"""What the rounds of MGRD came to: report.json, and the same as a page, report.html."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.console import Console

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.training import report

Rounds = Sequence[dict[str, Any]]
"""Of each round, the first of which is the start (round 0), what its steps found (mgrd.py)."""


def write(workdir: epath.Path, rounds: Rounds, console: Console) -> None:
    """Writes both; what keeps it from that is told, and no reason for a run to fail."""
    try:
        pages = {"report.json": json.dumps(rounds, indent=2) + "\n", "report.html": render(workdir, rounds)}
        for name, text in pages.items():
            write_whole(workdir / name, text.encode())
    except ImportError:
        console.print("no report.html: its plots need matplotlib: pip install 'stepaudio-jax[train]'", markup=False)
    except OSError as error:
        console.print(f"no report: {error}", markup=False)


def render(workdir: epath.Path, rounds: Rounds) -> str:
    """The page.

    Raises:
      ImportError: matplotlib is not there.
    """
    scores = [{"step": each["round"]} | each["scores"] for each in rounds if "scores" in each]
    names = sorted({name for line in scores for name in line} - {"step"})
    parts = [f"<h1>{html.escape(workdir.name)}: modality-grounded reasoning distillation</h1>"]
    parts += [report.plot(name, scores, (name,), over="round") for name in names]
    for each in rounds:
        parts += _round(each)
    return report.page(workdir.name, parts)


def _round(found: dict[str, Any]) -> list[str]:
    parts = [f"<h2>Round {found['round']}</h2>" if found["round"] else "<h2>The start</h2>"]
    if "questions" in found:
        kept = sum(map(len, found["questions"]["kept"].values()))
        parts.append(f"<p>{kept:,} of {found['questions']['asked']:,} questions need the sound.</p>")
        parts.append(_histogram("replies right without the sound", found["questions"]["histogram"]))
    if "distil" in found:
        counts = found["distil"]["outcomes"]
        total = found["distil"]["replies"]
        rows = [(name, f"{number:,} ({number / total:.1%})") for name, number in counts.items()]
        parts.append(report.table("Replies, and what became of them", rows))
        parts += [_examples(name, own) for name, own in found["distil"]["examples"].items()]
    if "filter" in found:
        parts.append(f"<p>{found['filter']['kept']:,} of {found['filter']['asked']:,} questions are reinforced.</p>")
        parts.append(_histogram("replies right", found["filter"]["histogram"]))
    if "scores" in found:
        parts.append(report.table("Scores", [(name, f"{value:.4g}") for name, value in found["scores"].items()]))
    return parts


def _histogram(title: str, numbers: Sequence[int]) -> str:
    return report.table(title, [(str(right), f"{number:,}") for right, number in enumerate(numbers)])


def _examples(outcome: str, examples: Sequence[dict[str, Any]]) -> str:
    blocks = "".join(
        f"<pre>{html.escape(each['source'])} {each['record']}\n{html.escape(each['think'])}\n→ "
        f"{html.escape(each['answer'])}</pre>"
        for each in examples
    )
    return f"<details><summary>{html.escape(outcome)}: examples</summary>{blocks}</details>"
