"""The page of `stepaudio data check`: one file that needs nothing else, with histograms, bad records, samples to hear.

What stands in a record is text on it and never markup: everything is escaped, and the page forbids itself scripts.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
import soundfile
from etils import epath

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.findings import Findings, common_reasons, quantiles
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.text import Audio, Conversation, Turn

HEARD_SECONDS = 30
"""Of a clip, so much is put into the page."""

SHOWN_BAD = 1000
SHOWN_LETTERS = 4000

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #3b78c4; --bad: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p.files { margin: 0 0 1.5rem; opacity: .7; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; }
.tiles div { background: var(--soft); border-radius: .5rem; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; } .tiles .bad b { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem 2rem; }
figure { margin: 0; max-width: 30rem; } figcaption { opacity: .7; font-size: .9rem; }
svg { width: 100%; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: currentColor; font-size: 11px; } svg line { stroke: var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; } td:first-child { font-variant-numeric: tabular-nums; min-width: 5rem; }
table.bad td:first-child { min-width: 14rem; max-width: 22rem; }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: .8rem 0; }
article > small { opacity: .7; overflow-wrap: anywhere; }
audio { display: block; width: 100%; height: 2.2rem; margin: .3rem 0; }
.turn { display: grid; grid-template-columns: 6rem 1fr; gap: .6rem; margin-top: .5rem; }
.turn > span { opacity: .7; } .words { white-space: pre-wrap; overflow-wrap: anywhere; }
details { opacity: .75; } .worse { border-left: 3px solid var(--bad); padding-left: .6rem; margin-top: .6rem; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<title>Data check</title><style>{style}</style></head><body>
<h1>Data check</h1><p class="files">{files}</p>
<div class="tiles">{tiles}</div>
<h2>How long</h2><div class="plots">{plots}</div>
<h2>Letters by script</h2><div class="plots">{scripts}</div>
{unread}
{reasons}
<h2>{heading}</h2>{samples}
{bad}
</body></html>
"""


def write_page(path: epath.PathLike, findings: Findings, files: str, tokenizer: str) -> None:
    """Writes the page, whole or not at all. Raises OSError."""
    path = epath.Path(path)
    draft = path.parent / f"{path.name}.tmp"
    draft.write_text(render_page(findings, files, tokenizer))
    draft.replace(path)


def render_page(findings: Findings, files: str, tokenizer: str) -> str:
    """The page's HTML. `files` and `tokenizer` are what they are called on it."""
    samples = findings.audible
    return PAGE.format(
        style=STYLE,
        files=escape(files),
        tiles="".join(_tiles(findings)),
        plots=_histogram(findings.seconds, "seconds of a clip")
        + _histogram(findings.tokens, f"tokens of a record, by the tokenizer of {tokenizer}"),
        scripts=_bars(findings.scripts()),
        unread=_unread(findings),
        reasons=_reasons(findings),
        bad=_bad(findings),
        heading=f"{len(samples)} good records, drawn at random",
        samples="".join(map(_sample, samples)),
    )


def _tiles(findings: Findings) -> list[str]:
    shares = {
        "records looked at": f"{findings.seen:,} of {findings.total:,}",
        "bad": f"{len(findings.bad):,} ({findings.bad_share:.1%})",
        "hours of sound": f"{sum(findings.seconds) / 3600:,.2f}",
        "clips": f"{len(findings.seconds):,}",
        "tokens": f"{sum(findings.tokens):,}",
        **{name: f"{number:,}" for name, number in sorted(findings.counts.items())},
    }
    bad = findings.bad
    return [
        f"<div{' class=bad' if name == 'bad' and bad else ''}><b>{escape(value)}</b>{escape(name)}</div>"
        for name, value in shares.items()
    ]


def _histogram(values: list, what: str, bins: int = 40) -> str:
    """Bars over a scale from the least to the most, logarithmic where a few are far above the rest."""
    if not values:
        return f"<figure><figcaption>{escape(what)}: none</figcaption></figure>"
    data = np.asarray(values, float)
    low, high = float(data.min()), float(data.max())
    if high > 20 * np.median(data) and low > 0:
        edges = np.geomspace(low, high, bins + 1)
    else:
        edges = np.linspace(min(low, 0.0), high or 1.0, bins + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts, _ = np.histogram(data, edges)
    tallest, width = counts.max(), 480 / bins
    bars = "".join(
        f'<rect x="{10 + i * width:.1f}" y="{140 - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>'
        for i, height in enumerate(np.where(counts > 0, np.maximum(counts / tallest * 125, 1.5), 0))
    )
    marks = "".join(
        f'<text x="{10 + at * 480:.0f}" y="156" text-anchor="{anchor}">{edges[int(at * bins)]:,.3g}</text>'
        for at, anchor in ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end"))
    )
    points = ", ".join(f"{name} {value:,.4g}" for name, value in quantiles(values).items())
    return (
        f'<figure><svg viewBox="0 0 500 160" role="img">{bars}<line x1="10" x2="490" y1="140" y2="140"/>{marks}'
        f'<text x="490" y="12" text-anchor="end">most in one bar: {tallest:,}</text></svg>'
        f"<figcaption>{escape(what)}: {escape(points)}</figcaption></figure>"
    )


def _bars(shares: dict[str, float]) -> str:
    rows = "".join(
        f'<text x="90" y="{20 + 20 * i}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="98" y="{10 + 20 * i}" width="{max(share * 330, 1):.1f}" height="13"/>'
        f'<text x="{104 + share * 330:.1f}" y="{20 + 20 * i}">{share:.1%}</text>'
        for i, (name, share) in enumerate(list(shares.items())[:12])
    )
    height = 20 * min(len(shares), 12) + 10
    return f'<figure><svg viewBox="0 0 500 {height}" role="img">{rows}</svg></figure>'


def _unread(findings: Findings) -> str:
    if not findings.unread:
        return ""
    rows = "".join(f"<tr><td>{number:,}<td>{escape(name)}" for name, number in findings.unread.most_common())
    return f"<h2>Columns and fields that are kept, but not read</h2><table>{rows}</table>"


def _reasons(findings: Findings) -> str:
    tables = ""
    for title, places in (("Why records are bad", findings.bad), ("Warnings about sound", findings.warnings)):
        rows = "".join(f"<tr><td>{number:,}<td>{escape(reason)}" for reason, number in common_reasons(places)[:50])
        tables += f"<h2>{title}</h2><table>{rows}</table>" if places else ""
    return tables


def _bad(findings: Findings) -> str:
    if not findings.bad:
        return ""
    records = "".join(f"<tr><td>{escape(where)}<td>{escape(reason)}" for where, reason in findings.bad[:SHOWN_BAD])
    more = f"the first {SHOWN_BAD:,} of " if len(findings.bad) > SHOWN_BAD else ""
    return f'<h2>Bad records: {more}{len(findings.bad):,}</h2><table class="bad">{records}</table>'


def _sample(sample: Sample) -> str:
    chosen = "".join(map(_turn, sample.conversation.turns))
    worse = ""
    if sample.rejected is not None:
        worse = f'<div class="worse"><small>the worse reply</small>{"".join(map(_turn, _end(sample.rejected)))}</div>'
    tools = f'<div class="words">{_words(sample.conversation.tools)}</div>' if sample.conversation.tools else ""
    return f"<article><small>{escape(sample.where)}</small>{tools}{chosen}{worse}</article>"


def _end(rejected: Conversation) -> tuple[Turn, ...]:
    return rejected.turns[-1:]


def _turn(turn: Turn) -> str:
    parts = "".join(
        _player(part) if isinstance(part, Audio) else f'<div class="words">{_words(part.text)}</div>'
        for part in turn.parts
    )
    think = ""
    if turn.think:
        think = f'<details><summary>reasoning</summary><div class="words">{_words(turn.think)}</div></details>'
    return f'<div class="turn"><span>{escape(turn.role)}</span><div>{think}{parts}</div></div>'


def _words(text: str) -> str:
    return escape(text[:SHOWN_LETTERS]) + ("…" if len(text) > SHOWN_LETTERS else "")


def _player(clip: Audio) -> str:
    sound = io.BytesIO()
    soundfile.write(sound, clip.samples[: HEARD_SECONDS * SAMPLE_RATE], SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(sound.getvalue()).decode()
    cut = f", its first {HEARD_SECONDS} s" if clip.seconds > HEARD_SECONDS else ""
    return (
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{data}"></audio>'
        f"<small>{escape(clip.name[:200])}: {clip.seconds:.2f} s{cut}</small>"
    )
