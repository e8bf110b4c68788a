"""`stepaudio data check`: is a data set fit to be trained on, told before any machine is rented for it."""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stepaudio_jax.audio import collect_warnings
from stepaudio_jax.checkpoints import resolve
from stepaudio_jax.data import formats
from stepaudio_jax.data.examples import encode
from stepaudio_jax.data.findings import Finding, Findings, common_reasons, letters_by_script, quantiles
from stepaudio_jax.data.page import write_page
from stepaudio_jax.data.reading import Placed, count, read
from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Tokenizer

SHOWN = 10
"""Reasons, and bad records, that the terminal shows; the page and the JSON have all of them."""

SHOWN_NAMES = 50


def check(
    paths: Sequence[epath.PathLike],
    tokenizer: Tokenizer,
    *,
    roots: Sequence[epath.PathLike] = (),
    format: str | None = None,
    prompts: bool = False,
    max_bad_share: float = 0.1,
    limit: int | None = None,
    workers: int | None = None,
    seen: Callable[[Findings], None] = lambda findings: None,
) -> Findings:
    """Reads every record, loads its sounds, renders it. Bad records are noted and passed over, until they are certain
    to be more than `max_bad_share` of all.

    Args:
      roots: where the sounds lie; by default beside each file.
      format, prompts: those of `formats.parse`.
      limit: look at the first so many records only.
      workers: threads; by default one per core.
      seen: called after every record.

    Raises:
      OSError, ValueError: a file that is not there or holds no records; roots that do not exist.
    """
    total = sum(count(path) for path in paths)
    if not total:
        raise ValueError(f"{', '.join(map(str, paths))}: no records in it")
    findings = Findings(min(total, limit or total))
    threads = workers or os.cpu_count() or 1
    sounds = {str(path): Sounds(roots or [_beside(epath.Path(path))]) for path in paths}
    records = ((path, *placed) for path in paths for placed in read([path]))

    def look(item: tuple) -> tuple[str, Finding | RecordError]:
        path, where, record = item
        try:
            return where, _look((where, record), sounds[str(path)], tokenizer, format, prompts)
        except RecordError as error:
            return where, error

    with ThreadPoolExecutor(threads) as pool:
        for where, found in _in_order(pool, look, islice(records, findings.total), ahead=4 * threads):
            findings.add(found, where)
            seen(findings)
            if len(findings.bad) > max_bad_share * findings.total:
                break
    return findings


def _look(placed: Placed, sounds: Sounds, tokenizer: Tokenizer, format: str | None, prompts: bool) -> Finding:
    where, record = placed
    if isinstance(record, RecordError):
        raise record
    with collect_warnings() as warnings:
        sample = formats.parse(record, sounds, where, format=format, prompts=prompts)
    sides = [sample.conversation] + ([sample.rejected] if sample.rejected else [])
    try:
        tokens = [encode(side, tokenizer).num_tokens for side in sides]
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None
    seconds = tuple(clip.seconds for clip in sample.conversation.audio)
    return Finding(sample, tokens[0], sum(tokens[1:]), seconds, letters_by_script(sample.conversation), tuple(warnings))


def _in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """What the function makes of each item, in order, working on no more than `ahead` beyond the one asked for."""
    items, running = iter(items), deque()
    try:
        while True:
            running.extend(pool.submit(function, item) for item in islice(items, ahead - len(running)))
            if not running:
                return
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _beside(path: epath.Path) -> epath.Path:
    return path if path.is_dir() else path.parent


def define_input(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is read and how, the same for `data build`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=".jsonl, .json, .parquet, .arrayrecord, or a folder")
    parser.add_argument("--audio", nargs="+", default=[], metavar="ROOT", help="folders and .tar files the sounds are "
                        "in (default: beside each file)")  # fmt: skip
    parser.add_argument("--format", choices=sorted(formats.FORMATS), help="by default told from each record")
    parser.add_argument("--prompts", action="store_true", help="records need no reply: prompts for RL")
    parser.add_argument("--tokenizer", default="tiny", metavar="CHECKPOINT", help="whose tokens are counted: name the "
                        "one you will train; tiny (the default) splits text finer than a large one")  # fmt: skip
    parser.add_argument("--max-bad-share", type=float, default=0.1, help="stop above this share (default 0.1)")


def define(parser: argparse.ArgumentParser) -> None:
    define_input(parser)
    parser.add_argument("--limit", type=int, default=None, help="only the first so many records")
    parser.add_argument("--report", default=None, metavar="PAGE.html", help="write a page: histograms, bad records, "
                        "ten samples to listen to")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where too many records are bad."""
    if not 0 <= args.max_bad_share <= 1:
        raise ValueError(f"--max-bad-share: expected a share between 0 and 1, found {args.max_bad_share}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: expected a number of records, found {args.limit}")
    if args.report and not _is_writable(epath.Path(args.report)):
        raise ValueError(f"--report: {args.report}: expected a file in a folder that is there and can be written to")
    tokenizer = Tokenizer.load(resolve(args.tokenizer))
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("checking", total=None, rate="")

        def seen(findings: Findings):
            speed = progress.tasks[task].speed
            rate = f"{speed:.0f} records/s, {len(findings.bad)} bad" if speed else ""
            progress.update(task, completed=findings.seen, total=findings.total, rate=rate)

        findings = check(args.files, tokenizer, roots=args.audio, format=args.format, prompts=args.prompts,
                         max_bad_share=args.max_bad_share, limit=args.limit, seen=seen)  # fmt: skip
    if args.report:
        write_page(args.report, findings, ", ".join(args.files), args.tokenizer)
    if args.json:
        print(json.dumps(findings.to_json()))
    else:
        show(findings, args.tokenizer, console)
    too_many = len(findings.bad) > args.max_bad_share * findings.total
    if too_many:
        stopped = f"; stopped after {findings.seen} of {findings.total}" if findings.seen < findings.total else ""
        errors.print(f"more than {args.max_bad_share:.1%} of the records are bad{stopped}", style="red")
    return int(too_many)


def _is_writable(path: epath.Path) -> bool:
    """Asked before the work, not after it; gs:// is not asked."""
    return "://" in str(path) or (os.access(path.parent, os.W_OK) and not path.is_dir())


def show(findings: Findings, tokenizer: str, console: Console):
    """The tables a person reads."""
    table = Table(title=f"{findings.seen} records", show_header=False)
    table.add_row("good", f"{findings.good}")
    table.add_row("bad", f"{len(findings.bad)} ({findings.bad_share:.1%})")
    for name, number in sorted(findings.counts.items()):
        table.add_row(name, f"{number}")
    table.add_row("sound", f"{sum(findings.seconds) / 3600:.2f} h in {len(findings.seconds)} clips")
    table.add_row(f"tokens ({tokenizer})", f"{sum(findings.tokens)}")
    table.add_row("letters", ", ".join(f"{name} {share:.1%}" for name, share in findings.scripts().items()))
    console.print(table)
    sizes = {"seconds of a clip": quantiles(findings.seconds), "tokens of a record": quantiles(findings.tokens)}
    if findings.good:
        table = Table("", *quantiles(findings.tokens), title="how long")
        for name, points in sizes.items():
            if points:
                table.add_row(name, *(f"{point:.4g}" for point in points.values()))
        console.print(table)
    if findings.unread:
        table = Table("records", "what is kept, but not read", title="beside the dialogues")
        for name, number in findings.unread.most_common(SHOWN_NAMES):
            table.add_row(f"{number}", Text(name))
        if (more := len(findings.unread) - SHOWN_NAMES) > 0:
            table.add_row("", f"{more} more names, all of them in --json and --report")
        console.print(table)
    if findings.warnings:
        show_places("why they are probably not what was meant", findings.warnings, console)
    if findings.bad:
        show_bad(findings.bad, console)


def show_bad(bad: Sequence[tuple[str, str]], console: Console):
    """The commonest reasons, and the first bad records."""
    show_places("why they are bad", bad, console)


def show_places(title: str, places: Sequence[tuple[str, str]], console: Console):
    """The commonest reasons, and the first records of which something is said."""
    table = Table("records", title)
    for reason, number in common_reasons(places)[:SHOWN]:
        table.add_row(str(number), Text(reason))  # what a record says is no markup
    console.print(table)
    for where, reason in places[:SHOWN]:
        console.print(f"{where}: {reason}", markup=False, soft_wrap=True)
