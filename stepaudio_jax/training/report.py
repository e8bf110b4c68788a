"""A page about a run, report.html: its curves, what happened, its checkpoints, its config. One file without scripts."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.console import Console

from stepaudio_jax.training import metrics

CURVES = (
    ("loss (nats per token)", ("loss", "loss/")),
    ("accuracy (next token)", ("accuracy", "accuracy/")),
    ("gradient norm", ("grad_norm",)),
    ("tokens of a think block that is trained on", ("think_tokens",)),
    ("learning rate", ("learning_rate",)),
    ("tokens a second", ("tokens_per_second",)),
    ("shares: padding, waiting for data, MFU", ("padding", "data_wait", "mfu")),
)
"""Title and names; a name that ends in "/" stands for all that begin so."""

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.1em 1em .1em 0;"
    "vertical-align:top}svg{max-width:100%;height:auto}pre{background:#f4f4f4;padding:1em;overflow:auto}"
)


Curves = Sequence[tuple[str, Sequence[str]]]


def write(workdir: epath.Path, checkpoints: Sequence[int], console: Console, *, curves: Curves = CURVES) -> None:
    """Writes workdir/report.html. What keeps it from that is told, and no reason for a run to fail.

    Args:
      checkpoints: the steps of those that are there.
      curves: what to plot.
    """
    try:
        page = render(workdir, checkpoints, curves)
        unfinished = workdir / "report.html.unfinished"
        unfinished.write_text(page)
        unfinished.replace(workdir / "report.html")
    except ImportError:
        console.print("no report.html: its plots need matplotlib: pip install 'stepaudio-jax[train]'", markup=False)
    except OSError as error:
        console.print(f"no report.html: {error}", markup=False)


def render(workdir: epath.Path, checkpoints: Sequence[int], curves: Curves = CURVES) -> str:
    """The page.

    Raises:
      ImportError: matplotlib is not there.
    """
    lines = metrics.read(workdir)
    config = (workdir / "config.json").read_text()
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if metrics.is_evaluation(line)]
    events = [(line["step"], line["event"]) for line in lines if "event" in line]
    done = f"{steps[-1]['step']} of {json.loads(config)['steps']} steps" if steps else "no step"
    last = [(name, f"{value:.4g}") for name, value in steps[-1].items() if name != "step"] if steps else []
    parts = [
        f"<h1>{html.escape(workdir.name)}: {done}</h1>",
        *(plot(title, steps, names) for title, names in curves),
        *(plot(f"evaluation: {name}", evals, (name,)) for name in sorted({n for e in evals for n in e} - {"step"})),
        table("At the last logged step", last),
        table("What happened", [(f"after step {step}", what) for step, what in events]),
        table("Checkpoints", [(f"checkpoints/{step:06d}", "") for step in checkpoints]),
        f"<h2>Config</h2><pre>{html.escape(config)}</pre>",
    ]
    return page(workdir.name, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document of pieces of HTML."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</html>\n"


def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Two columns under a heading; nothing without rows."""
    cells = "".join(f"<tr><td>{html.escape(a)}<td>{html.escape(b)}" for a, b in rows)
    return f"<h2>{title}</h2><table>{cells}</table>" if rows else ""


def plot(title: str, lines: Sequence[dict[str, Any]], names: Sequence[str], *, over: str = "step") -> str:
    """Curves over each line's "step" as SVG; nothing where there is no number. `over`: what the steps are called."""
    found = sorted({key for line in lines for key in line for name in names if _matches(key, name)})
    if not found:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    for key in found:
        points = [(line["step"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 30 else "", linewidth=1)
    if "loss" in names:
        axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(over, fontsize=8)
    axes.grid(alpha=0.3)
    if len(found) > 1:
        axes.legend(fontsize=8)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def _matches(key: str, name: str) -> bool:
    return key.startswith(name) if name.endswith("/") else key == name
