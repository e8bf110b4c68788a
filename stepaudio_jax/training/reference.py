"""DPO's reference: what the model that a run starts from thinks of every preference, computed once (arXiv:2305.18290).

Kept in workdir/reference/, one float32 [records, 2] a source: the log-probabilities of the better and of the worse
reply, nan for records that cannot be used. So no second model is in memory while the policy is trained. While that is
computed, unfinished-P-of-N.npz is how far process P of N has come, from which as many processes go on.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stepaudio_jax.data import Batch, Example
from stepaudio_jax.data.loading import Loader
from stepaudio_jax.data.mixture import Mixture
from stepaudio_jax.data.packing import pack
from stepaudio_jax.data.plan import WINDOW
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.stage import Stage

FOLDER, INFO = "reference", "reference.json"
SAVE_SECONDS = 60.0
"""Between two writings of how far the pass has come."""

Items = list[tuple[int, int]]
"""(source, record) of a row."""


def reference_scores(
    config: Config,
    stage: Stage,
    loader: Loader,
    lay_out: Callable[[list[list[Example]]], Batch],
    workdir: epath.Path,
    fingerprint: str,
) -> list[np.ndarray]:
    """Of each source, [records, 2]: read where they lie, else computed, on every process, and written.

    Args:
      lay_out: this process's rows to a batch.
      fingerprint: of the mixture (data.plan.RowPlan).
    """
    about = {"init": str(config.init), "plan": fingerprint}
    folder, names = workdir / FOLDER, [source.name for source in loader.mixture.sources]
    if (folder / INFO).exists() and json.loads((folder / INFO).read_text()) == about:
        return [np.load(io.BytesIO((folder / f"{name}.npy").read_bytes())) for name in names]
    progress = _Progress(
        folder, about | {"batch_size": config.data.batch_size}, [len(s.dataset) for s in loader.mixture.sources]
    )
    scores = _compute(config, stage, loader, lay_out, progress)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in zip(names, scores, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, values)
            (folder / f"{name}.npy").write_bytes(buffer.getvalue())
        (folder / INFO).write_text(json.dumps(about, indent=2) + "\n")  # last: without it the others do not count
    progress.remove()
    return scores


class _Progress:
    """How far this process has come, and what it has found: all of it nan at first, or as an earlier one left it.

    Attributes: done, batches that every process has found; scores, as `reference_scores`.
    """

    def __init__(self, folder: epath.Path, about: dict[str, Any], records: Sequence[int]):
        self._file = folder / f"unfinished-{jax.process_index()}-of-{jax.process_count()}.npz"
        self._about, self._saved = json.dumps(about, sort_keys=True), time.monotonic()
        self.done, self.scores = 0, [np.full((number, 2), np.nan, np.float32) for number in records]
        try:
            with np.load(io.BytesIO(self._file.read_bytes())) as stored:
                if str(stored["about"]) == self._about:
                    self.done = int(stored["done"])
                    self.scores = [stored[f"scores{i}"] for i in range(len(records))]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # there is none, or a part of one
        if jax.process_count() > 1:
            self.done = int(multihost_utils.process_allgather(np.array(self.done)).min())

    def save(self, done: int) -> None:
        """Writes how many batches are done, unless that was done a short while ago."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"scores{i}": values for i, values in enumerate(self.scores)}
        np.savez(buffer, about=np.array(self._about), done=np.array(done), **arrays)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_bytes(buffer.getvalue())
        part.replace(self._file)
        self._saved = time.monotonic()

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)


def _compute(config: Config, stage: Stage, loader: Loader, lay_out, progress: _Progress) -> list[np.ndarray]:
    state = stage.new_state(config)._replace(opt_state=None)
    jitted = stage.segment_scores().jit()
    scores, mine = progress.scores, stage.local_rows()
    batches = list(_batches(_rows(loader.mixture), config.data.batch_size))
    console = Console(stderr=True, quiet=jax.process_index() > 0)
    columns = (TextColumn("reference"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeRemainingColumn())
    if progress.done:
        console.print(f"reference: goes on after batch {progress.done} of {len(batches)}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reference", total=len(batches), completed=progress.done)
        for number, rows in enumerate(batches[progress.done :], progress.done + 1):
            examples = [loader.row(rows[row]) for row in mine]
            found = np.asarray(jitted(state, stage.place(lay_out(examples))))
            found = found.reshape(-1, found.shape[-1])
            for row, pairs in zip(mine, examples, strict=True):
                for segment, example in enumerate(pairs):
                    scores[example.source][example.record, segment % 2] = found[row, segment]
            progress.save(number)
            bar.advance(task)
    if jax.process_count() > 1:
        return [np.nanmax(multihost_utils.process_allgather(values), axis=0) for values in scores]
    return scores


def _rows(mixture: Mixture) -> Iterator[Items]:
    """All records of all sources in packed rows, each once."""
    for number, source in enumerate(mixture.sources):
        for start in range(0, len(source.dataset), WINDOW):
            records = np.arange(start, min(start + WINDOW, len(source.dataset)))
            lengths = mixture.lengths(np.full_like(records, number), records)
            for row in pack(lengths, mixture.row_tokens):
                yield [(number, int(records[item])) for item in row]


def _batches(rows: Iterator[Items], size: int) -> Iterator[Sequence[Items]]:
    """So many rows at a time, the last ones filled up with empty rows."""
    gathered = list(rows)
    for start in range(0, len(gathered), size):
        part = gathered[start : start + size]
        yield part + [[] for _ in range(size - len(part))]
