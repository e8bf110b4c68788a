"""`stepaudio data build`: files of records to one stored data set (stored.py), in parallel, going on where it stopped.

The input is cut into pieces, a fixed range of the records of one file each, and a piece makes one shard, whoever
works on it and when: so the order is the input's and the bytes are the same, however often the build is killed. What
is not finished lies in OUT/unfinished: build.json, what the build began with, and for each finished piece its report.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stepaudio_jax.audio.lengths import LENGTH_RULES
from stepaudio_jax.checkpoints import resolve
from stepaudio_jax.data import check, stored
from stepaudio_jax.data.lengths import HAS_AUDIO, HAS_THINK, Rendering, tokenizer_sha256
from stepaudio_jax.data.pieces import (
    UNFINISHED,
    Piece,
    Recipe,
    changed_sound,
    cut,
    run_pieces,
    write_piece,
    write_whole,
)
from stepaudio_jax.data.reading import count
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.data.stored import DatasetError
from stepaudio_jax.data.think_incomplete import ThinkIncomplete
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.prompt import TEMPLATES

PLAN = "build.json"


@dataclasses.dataclass
class Tally:
    """How far a build is: records that there are, those read, the bad ones with reasons, how many were left out; and of
    each piece that was finished and is made again, a sound file that has changed since."""

    total: int
    read: int = 0
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    changed: list[str] = dataclasses.field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        self.read += report["read"]
        self.bad += [(where, reason) for where, reason in report["bad"]]
        self.left_out.update(report["left_out"])


class TooManyBad(DatasetError):
    """More records are bad than allowed; `tally` has them."""

    def __init__(self, message: str, tally: Tally):
        super().__init__(message)
        self.tally = tally


def build(
    paths: Sequence[epath.PathLike],
    out: epath.PathLike,
    recipe: Recipe,
    *,
    records_per_shard: int = 1000,
    workers: int | None = None,
    max_bad_share: float = 0.1,
    seen: Callable[[Tally], None] = lambda tally: None,
) -> dict[str, Any]:
    """Writes a stored data set, or finishes one that was begun, where what was made of sound files that have changed
    since, or that were missing and have come, is made again. Returns its dataset.json.

    Args:
      workers: processes; by default one per core.
      seen: called after every piece.

    Raises:
      TooManyBad: certain to have more bad records than the share.
      DatasetError: a folder that holds something else, or was begun with other arguments or other input; a full disk.
      OSError, ValueError: input that cannot be read at all.
    """
    out = epath.Path(out)
    begun, pieces = prepare(paths, out, recipe, records_per_shard)
    if (out / stored.INFO).exists():
        return stored.read_info(out)
    tally = Tally(_total(begun))
    waiting = []
    for piece in pieces:
        waiting.append(piece)
        if (out / piece.report).exists() and (out / piece.shard).exists():  # Beam leaves reports without shards
            report = _read_report(out, piece)
            if (path := changed_sound(report)) is not None:
                (out / piece.report).unlink()  # or its new shard could be counted by it
                tally.changed.append(path)
            else:
                tally.add(report)
                waiting.pop()
    with contextlib.closing(run_pieces(out, recipe, waiting, workers or os.cpu_count() or 1)) as reports:
        seen(tally)
        _refuse_bad(tally, max_bad_share)
        for report in reports:
            tally.add(report)
            seen(tally)
            _refuse_bad(tally, max_bad_share)
    return finish(out, recipe, pieces, begun)


def write_samples(out: epath.PathLike, samples: Sequence[Sample], recipe: Recipe) -> dict[str, Any]:
    """A stored data set of samples that are at hand, in one shard. A folder that holds one already is left as it is.

    Raises:
      RecordError: a sample that cannot be rendered. DatasetError: a full disk.
    """
    out = epath.Path(out)
    if (out / stored.INFO).exists():
        return stored.read_info(out)
    (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    piece = Piece("", 0, len(samples), 0, "records-00000-of-00001.arrayrecord")
    write_piece(out, recipe, piece, samples)
    return finish(out, recipe, [piece], {"arguments": _arguments(recipe, len(samples)), "inputs": []})


def prepare(
    paths: Sequence[epath.PathLike], out: epath.Path, recipe: Recipe, records_per_shard: int
) -> tuple[dict[str, Any], list[Piece]]:
    """Makes the folder ready for a build, new or begun. Returns what it begins with, and its pieces.

    Raises: as `build`.
    """
    Tokenizer.load(recipe.tokenizer)  # refused before anything else is read
    inputs = [{"path": str(path), **_identity(epath.Path(path)), "records": count(path)} for path in paths]
    begun = {"arguments": _arguments(recipe, records_per_shard), "inputs": inputs}
    if not _total(begun):
        raise DatasetError(f"{', '.join(map(str, paths))}: no records in it")
    _begin(out, begun)
    return begun, cut(inputs, records_per_shard)


def _total(begun: dict[str, Any]) -> int:
    return sum(entry["records"] for entry in begun["inputs"])


def _refuse_bad(tally: Tally, max_bad_share: float) -> None:
    if len(tally.bad) > max_bad_share * tally.total:
        raise TooManyBad(
            f"{len(tally.bad)} of the {tally.read} records read are bad, more than {max_bad_share:.1%} of all "
            f"{tally.total}",
            tally,
        )


def _arguments(recipe: Recipe, records_per_shard: int) -> dict[str, Any]:
    """All that decides the bytes, but the input, as JSON holds it."""
    arguments = dataclasses.asdict(recipe) | {
        "tokenizer": tokenizer_sha256(recipe.tokenizer),
        "records_per_shard": records_per_shard,
        "version": stored.VERSION,
    }
    return json.loads(json.dumps(arguments))


def _identity(path: epath.Path) -> dict[str, int]:
    """What tells a file or folder from a changed one: the bytes in it, and the latest change in nanoseconds."""
    files = [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]
    changed = [int(file.stat().mtime * 10**9) if "://" in str(file) else os.stat(file).st_mtime_ns for file in files]
    return {"bytes": sum(file.stat().length for file in files), "changed": max(changed, default=0)}


def _begin(out: epath.Path, begun: dict[str, Any]) -> None:
    whole, plan = (out / stored.INFO).exists(), out / UNFINISHED / PLAN
    if whole or plan.exists():
        before = stored.read_info(out)["build"] if whole else json.loads(plan.read_text())
        if changes := _changes(before, begun):
            raise DatasetError(
                f"{out}: begun with something else: {'; '.join(changes)}. Name another folder, or remove this one"
            )
    elif out.exists() and any(file.name != UNFINISHED for file in out.iterdir()):
        raise DatasetError(f"{out}: expected a new or empty folder, or a build that was begun, found other files in it")
    if whole:
        if (out / UNFINISHED).exists():  # killed right before the end
            (out / UNFINISHED).rmtree()
        return
    (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
    write_whole(plan, json.dumps(begun, indent=2).encode())
    for file in out.glob("*.unfinished-*"):  # of workers that were killed
        file.unlink()


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = [
        f"{name} was {before['arguments'].get(name)}, is {value}"
        for name, value in now["arguments"].items()
        if before["arguments"].get(name) != value
    ]
    if [entry["path"] for entry in before["inputs"]] != [entry["path"] for entry in now["inputs"]]:
        names = (" ".join(entry["path"] for entry in found["inputs"]) for found in (before, now))
        return [*changes, "the files were {}, are {}".format(*names)]
    for old, new in zip(before["inputs"], now["inputs"], strict=True):
        if old != new:
            changes.append(f"{old['path']} has changed, from {old['bytes']} bytes to {new['bytes']}")
    return changes


def _read_report(out: epath.Path, piece: Piece) -> dict[str, Any]:
    return json.loads((out / piece.report).read_text())


def finish(
    out: epath.Path, recipe: Recipe, pieces: list[Piece], begun: dict[str, Any], shards: list[dict] | None = None
) -> dict[str, Any]:
    """Puts the reports of all pieces together; dataset.json last, which makes the folder a data set.

    Args:
      shards: name and records of each file, where they are not those of the pieces.
    """
    tally, seconds, records = Tally(_total(begun)), 0.0, []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in stored.COLUMNS}
    for piece in pieces:
        report = _read_report(out, piece)
        tally.add(report)
        seconds += report["seconds"]
        records.append(report["records"])
        for name, dtype in stored.COLUMNS.items():
            parts[name].append(np.array(report["columns"][name], dtype))
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    for name, column in columns.items():
        data = io.BytesIO()
        np.save(data, column)
        write_whole(out / f"{name}.npy", data.getvalue())
    lines = [json.dumps({"where": where, "reason": reason}, ensure_ascii=False) for where, reason in tally.bad]
    write_whole(out / stored.BAD, "".join(f"{line}\n" for line in lines).encode())
    info = {
        "version": stored.VERSION,
        "records": len(columns["tokens"]),
        "bad": len(tally.bad),
        "left_out": dict(tally.left_out),
        "tokens": int(columns["tokens"].sum(dtype=np.int64) + columns["rejected_tokens"].sum(dtype=np.int64)),
        "seconds_of_sound": round(seconds, 3),
        "with_sound": int((columns["kind"] & HAS_AUDIO > 0).sum()),
        "with_reasoning": int((columns["kind"] & HAS_THINK > 0).sum()),
        "mel": recipe.mel,
        "tokenizer_sha256": begun["arguments"]["tokenizer"],
        "rendering": dataclasses.asdict(recipe.rendering),
        "shards": shards
        or [{"name": piece.shard, "records": number} for piece, number in zip(pieces, records, strict=True)],
        "build": begun,
    }
    os.sync()  # what dataset.json speaks of is on the disk before it
    write_whole(out / stored.INFO, json.dumps(info, indent=2).encode())
    (out / UNFINISHED).rmtree()
    return info


def define(parser: argparse.ArgumentParser) -> None:
    check.define_input(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the data set goes; run again to go on")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    parser.add_argument("--records-per-shard", type=int, default=1000, metavar="N", help="of input (default 1000)")
    parser.add_argument("--mel", action="store_true", help="store log-mel features too, for other programs: "
                        "training makes them of samples, 2 %% of its step (benchmarks/README.md)")  # fmt: skip
    parser.add_argument("--keep-think", action="store_true", help="lengths with the reasoning of earlier turns kept")
    parser.add_argument("--template", default="default", choices=TEMPLATES, help="lengths by this prompt template")
    parser.add_argument("--length-rule", default="hf", choices=LENGTH_RULES, help="audio tokens counted by this rule")
    parser.add_argument("--think-incomplete", type=int, default=None, metavar="SEED", help="cut each reply's reasoning "
                        "at a random paragraph; leaves out replies with Markdown or without reasoning")  # fmt: skip
    parser.add_argument("--copies", type=int, default=1, help="of each sample, with --think-incomplete (default 1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where too many records are bad."""
    for name in ("workers", "records_per_shard", "copies"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(args, name)}")
    if args.think_incomplete is None and args.copies != 1:
        raise ValueError(f"--copies {args.copies}: only --think-incomplete makes different copies of a sample")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a TPU here stays free for who uses it
    recipe = Recipe(
        str(resolve(args.tokenizer)),
        tuple(args.audio),
        args.format,
        args.prompts,
        args.mel,
        Rendering(args.length_rule, args.template, args.keep_think),
        None if args.think_incomplete is None else ThinkIncomplete(args.think_incomplete, args.copies),
    )
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    columns = (TextColumn("building"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())  # fmt: skip
    try:
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("building", total=None, rate="")

            def seen(tally: Tally):
                if tally.changed and progress.tasks[task].total is None:
                    pieces = f"{len(tally.changed)} finished piece{'s' * (len(tally.changed) > 1)}"
                    errors.print(
                        f"{pieces} made again: {tally.changed[0]} has changed since", soft_wrap=True, markup=False
                    )
                speed = progress.tasks[task].speed
                rate = f"{speed:.0f} records/s, {len(tally.bad)} bad" if speed else ""
                progress.update(task, completed=tally.read, total=tally.total, rate=rate)

            info = build(args.files, args.out, recipe, records_per_shard=args.records_per_shard, workers=args.workers,
                         max_bad_share=args.max_bad_share, seen=seen)  # fmt: skip
    except TooManyBad as error:
        check.show_bad(error.tally.bad, console)
        errors.print(f"{error}; stopped", style="red")
        return 1
    show(info, args.out, console)
    return 0


def show(info: dict[str, Any], out: str, console: Console) -> None:
    table = Table(title=out, show_header=False)
    for name in ("records", "bad", "tokens", "with_sound", "with_reasoning"):
        table.add_row(name.replace("_", " "), f"{info[name]}")
    for reason, number in info["left_out"].items():
        table.add_row(f"left out: {reason}", f"{number}")
    table.add_row("sound", f"{info['seconds_of_sound'] / 3600:.2f} h")
    table.add_row("shards", f"{len(info['shards'])}")
    console.print(table)
    if info["bad"]:
        console.print(f"the bad records and their reasons are in {out}/{stored.BAD}")
