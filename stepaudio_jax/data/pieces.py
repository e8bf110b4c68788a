"""A piece of the input to one shard of a stored data set, and many of them in worker processes (build.py).

A piece is a fixed range of the records of one file, so its shard has the same bytes whoever works on it and when.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from etils import epath

from stepaudio_jax.audio import chunk, lengths, log_mel, stack
from stepaudio_jax.data import formats, records, stored
from stepaudio_jax.data.lengths import Lengths, Rendering, measure
from stepaudio_jax.data.reading import Record, read_range
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.sounds import Sounds, stamp
from stepaudio_jax.data.stored import DatasetError
from stepaudio_jax.data.think_incomplete import LeftOut, ThinkIncomplete
from stepaudio_jax.text import Tokenizer

UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How records become what is stored; all of it changes the bytes.

    Attributes:
      tokenizer: the folder of its tokenizer.json.
      roots: where the sounds lie; by default beside each file.
      format, prompts: those of `formats.parse`.
      mel: store the log-mel of each clip too.
      transform: what is made of each sample.
    """

    tokenizer: str
    roots: tuple[str, ...] = ()
    format: str | None = None
    prompts: bool = False
    mel: bool = False
    rendering: Rendering = dataclasses.field(default_factory=Rendering)
    transform: ThinkIncomplete | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """Records [start, stop) of a file, which make a shard; `first` is the first one's number among all input."""

    path: str
    start: int
    stop: int
    first: int
    shard: str

    @property
    def report(self) -> str:
        return f"{UNFINISHED}/{self.shard}.json"


def cut(inputs: Sequence[dict[str, Any]], records_per_shard: int) -> list[Piece]:
    """The pieces of some input, in its order."""
    ranges, first = [], 0
    for entry in inputs:
        for start in range(0, entry["records"], records_per_shard):
            ranges.append((entry["path"], start, min(start + records_per_shard, entry["records"]), first + start))
        first += entry["records"]
    return [
        Piece(*found, shard=f"records-{number:05d}-of-{len(ranges):05d}.arrayrecord")
        for number, found in enumerate(ranges)
    ]


def write_piece(out: epath.Path, recipe: Recipe, piece: Piece, samples: Sequence[Sample]) -> None:
    """Writes a shard of these samples, then its report. Raises RecordError: one that cannot be rendered."""
    report = new_report() | {"read": len(samples)}
    with stored.RecordWriter(out / piece.shard) as writer:
        for sample in samples:
            writer.write(_add(report, sample, *_stored(sample, recipe)))
    write_whole(out / piece.report, json.dumps(report).encode())


def build_piece(out: epath.Path, recipe: Recipe, piece: Piece) -> dict[str, Any]:
    """Writes a shard, then its report: a piece with a report is whole. Returns the report without its columns."""
    report = new_report()
    with stored.RecordWriter(out / piece.shard) as writer:
        for data in records_of(piece, recipe, report):
            writer.write(data)
    write_whole(out / piece.report, json.dumps(report).encode())
    del report["columns"], report["sounds"]
    return report


def new_report() -> dict[str, Any]:
    """What is told of a piece: records read and made, seconds of sound, (place, reason) of the bad ones, how many are
    left out for which reason, the files that sound was looked for in, and the columns of what was made."""
    columns: dict[str, list[int]] = {name: [] for name in stored.COLUMNS}
    return {
        "read": 0,
        "records": 0,
        "seconds": 0.0,
        "bad": [],
        "left_out": Counter(),
        "sounds": {},
        "columns": columns,
    }


def changed_sound(report: dict[str, Any]) -> str | None:
    """A file that sound was looked for in, and that has changed, come or gone since; None where none has."""
    return next((path for path, before in report.get("sounds", {}).items() if stamp(epath.Path(path)) != before), None)


def records_of(piece: Piece, recipe: Recipe, report: dict[str, Any]) -> Iterator[bytes]:
    """The stored records of a piece, each counted in the report."""
    sounds = _sounds(recipe.roots or (str(_beside(epath.Path(piece.path))),))
    sounds.seen = report["sounds"]
    for where, record in read_range(piece.path, piece.start, piece.stop):
        report["read"] += 1
        try:
            samples = _samples(recipe, sounds, record, where, piece.first + report["read"] - 1)
            made = [(sample, *_stored(sample, recipe)) for sample in samples]
        except RecordError as error:
            report["bad"].append((where, str(error).removeprefix(f"{where}: ")))
            continue
        except LeftOut as reason:
            report["left_out"][str(reason)] += 1
            continue
        for sample, measured, data in made:
            yield _add(report, sample, measured, data)
    if report["read"] != piece.stop - piece.start:
        raise DatasetError(f"{piece.path}: expected record {piece.stop}, found the end: changed since the build began")


def _add(report: dict[str, Any], sample: Sample, measured: Lengths, data: bytes) -> bytes:
    """The stored record, after it has been counted."""
    report["records"] += 1
    report["seconds"] += sum(clip.seconds for clip in records.clips(sample))
    for name, value in measured._asdict().items():
        report["columns"][name].append(value)
    return data


def _samples(recipe: Recipe, sounds: Sounds, record: Record | RecordError, where: str, index: int) -> list[Sample]:
    if isinstance(record, RecordError):
        raise record
    sample = formats.parse(record, sounds, where, format=recipe.format, prompts=recipe.prompts)
    return recipe.transform(sample, index) if recipe.transform else [sample]


def _stored(sample: Sample, recipe: Recipe) -> tuple[Lengths, bytes]:
    measured = measure(sample, _tokenizer(recipe.tokenizer), recipe.rendering)
    mels = {i: mel(clip.samples) for i, clip in enumerate(records.clips(sample))} if recipe.mel else None
    return measured, records.encode_sample(sample, mels)


def mel(samples: np.ndarray) -> np.ndarray:
    """The log-mel of a clip: its chunks' frames one after the other, float32 [frames, 128]."""
    frames = []
    for piece in chunk(samples):
        made = _log_mel()(*stack([piece]))
        frames.append(np.asarray(made[0, : lengths.mel_frames(len(piece))]))
    return np.concatenate(frames)


@functools.cache
def _log_mel():
    import jax

    return jax.jit(log_mel)


@functools.cache
def _tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)


@functools.cache
def _sounds(roots: tuple[str, ...]) -> Sounds:
    return Sounds(roots)


def _beside(path: epath.Path) -> epath.Path:
    return path if path.is_dir() else path.parent


Reports = Generator[dict[str, Any], None, None]


def run_pieces(out: epath.Path, recipe: Recipe, pieces: list[Piece], workers: int) -> Reports:
    """The reports of the pieces, in the order in which they are finished."""
    if workers == 1:
        for piece in pieces:
            yield build_piece(out, recipe, piece)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, min(workers, len(pieces))), context, _start_worker)
    try:
        for future in as_completed([pool.submit(build_piece, out, recipe, piece) for piece in pieces]):
            yield future.result()
    except BrokenProcessPool:
        raise DatasetError(
            f"{out}: a worker was killed, perhaps for want of memory; the same command goes on from here, and fewer "
            "--workers need less"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """A worker dies at once on ctrl-C, and with its parent, even one that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch():
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_whole(path: epath.Path, data: bytes) -> None:
    """A file that has its name only once it is whole."""
    temporary = path.parent / f"{path.name}.unfinished-{os.getpid()}"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
