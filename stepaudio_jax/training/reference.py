"""DPO's reference: what the model that a run starts from thinks of every preference, computed once (arXiv:2305.18290).

Kept in workdir/reference/, one float32 [records, 2] a source: the log-probabilities of the better and of the worse
reply, nan for records that cannot be used. So no second model is in memory while the policy is trained.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence

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
    scores = _compute(config, stage, loader, lay_out)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in zip(names, scores, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, values)
            (folder / f"{name}.npy").write_bytes(buffer.getvalue())
        (folder / INFO).write_text(json.dumps(about, indent=2) + "\n")  # last: without it the others do not count
    return scores


def _compute(config: Config, stage: Stage, loader: Loader, lay_out) -> list[np.ndarray]:
    state = stage.new_state(config)._replace(opt_state=None)
    jitted = stage.segment_scores().jit()
    scores = [np.full((len(source.dataset), 2), np.nan, np.float32) for source in loader.mixture.sources]
    mine = stage.local_rows()
    batches = list(_batches(_rows(loader.mixture), config.data.batch_size))
    console = Console(stderr=True, quiet=jax.process_index() > 0)
    columns = (TextColumn("reference"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for rows in progress.track(batches):
            examples = [loader.row(rows[row]) for row in mine]
            found = np.asarray(jitted(state, stage.place(lay_out(examples))))
            found = found.reshape(-1, found.shape[-1])
            for row, pairs in zip(mine, examples, strict=True):
                for segment, example in enumerate(pairs):
                    scores[example.source][example.record, segment % 2] = found[row, segment]
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
