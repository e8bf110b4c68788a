"""The checkpoints of a training run: saved while it goes on, kept by rule, read back exactly or not at all.

checkpoints/
  frozen/        Orbax arrays: the parameters that are not trained, once for the run
  000123/        after step 123; it has this name only when it is whole
    config.json  tokenizer.json  generation_config.json    as in any checkpoint: `load` and the converter read it
    params/      the trained parameters, float32
    train/       the optimizer's state
    run.json     where the run was, and a checksum of every array
    training.json    the config of the run
    scores.json  what an evaluation at this step found, if there was one

Orbax writes arrays in the background and renames (or, on object stores, marks) the folder when every process is done.
Its stores have no checksums of values, so each array's is made on the devices before it is written and compared after
it is read, whatever mesh it is read onto.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from stepaudio_jax.checkpoints.checkpoint import logical_axes, quiet, wait_for_all
from stepaudio_jax.checkpoints.checksums import checksums, named, path_name
from stepaudio_jax.checkpoints.layout import FROZEN, PARAMS, RUN, CheckpointError, first_line, save_args
from stepaudio_jax.inputs import read_object
from stepaudio_jax.models import StepAudio

TRAIN, SCORES, DAMAGED, FROZEN_SUMS = "train", "scores.json", "damaged.json", "frozen.json"
TEMPORARY = ".orbax-checkpoint-tmp"
"""In the names of folders that Orbax has not finished."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `newest` so many, every step that `multiples_of` divides (0: none), and the
    one of the highest score named `best` ("-loss": of the lowest loss; "": none).

    Raises:
      ValueError: none of the newest.
    """

    newest: int = 2
    multiples_of: int = 0
    best: str = ""

    def __post_init__(self):
        if self.newest < 1:
            raise ValueError(f"checkpoints.newest: expected at least 1, found {self.newest}")

    def kept(self, scores: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Of the steps that have checkpoints, with their scores if any, those that stay."""
        steps = sorted(scores)
        keep = {step for step in steps if self.multiples_of and step % self.multiples_of == 0}
        keep.update(steps[-self.newest :])
        name, sign = self.best.removeprefix("-"), -1 if self.best.startswith("-") else 1
        if rated := [(sign * scores[step][name], step) for step in steps if name in scores[step]]:
            keep.add(max(rated)[1])
        return keep


class Restored(NamedTuple):
    """What a checkpoint held. `about` is what `save` was given; `damaged` says what was wrong with newer ones."""

    step: int
    params: Any
    frozen: Any
    train: Any
    about: dict[str, Any]
    damaged: list[str]


class RunCheckpoints:
    """The checkpoints of one run. Over several processes each makes one, and all call every method."""

    def __init__(
        self,
        folder: epath.PathLike,
        model: StepAudio,
        tokenizer_json: str,
        *,
        generation: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
        retention: Retention = Retention(),
    ):
        """
        Args:
          model: of arrays or shapes.
          generation: as in `checkpoints.save`.
          texts: more files to lie in every checkpoint, by name, such as what makes it one of adapters.
        """
        self.folder = epath.Path(folder).resolve()
        self.retention = retention
        self._texts = {
            "config.json": _json(model.config.to_hf()),
            "tokenizer.json": tokenizer_json,
            "generation_config.json": _json(dict(generation)),
            **(texts or {}),
        }
        axes = logical_axes(nnx.state(model, nnx.Param))
        self._stacked = [name for name in axes if axes[name][0] == "layers"]
        self._handler = _StepHandler()
        logging.getLogger("absl").addFilter(_of_saving)
        self._saver = ocp.AsyncCheckpointer(self._handler)

    def path(self, step: int) -> epath.Path:
        return self.folder / f"{step:06d}"

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order, as this process sees them."""
        if not self.folder.exists():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and (path / RUN).exists())

    def scores(self, step: int) -> dict[str, float] | None:
        """What `note` was given for a step's checkpoint."""
        path = self.path(step) / SCORES
        return read_object(path) if path.exists() else None

    def note(self, step: int, scores: Mapping[str, float]) -> None:
        """Keeps what an evaluation found beside a step's checkpoint, which is saved before it is evaluated."""
        self.wait()
        if jax.process_index() == 0:
            _write(self.path(step) / SCORES, _json(dict(scores)))
            self._prune()

    def save_frozen(self, frozen: Any) -> None:
        """Writes the parameters that are not trained; before the first `save`, if there are any."""
        path = self.folder / FROZEN
        sums = checksums(frozen)
        with self._writing(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as saver:
            saver.save(path, args=self._layout(frozen), force=True)
        if jax.process_index() == 0:
            _write(self.folder / FROZEN_SUMS, _json(sums))

    def save(self, step: int, params: Any, train: Any, *, frozen: bool, about: Mapping[str, Any], config: str) -> None:
        """Begins to write a checkpoint; the arrays may be given away as soon as this returns.

        Args:
          params: trained parameters, a tree by module path.
          train: the optimizer's state, any tree of arrays.
          frozen: whether this run has frozen parameters (`save_frozen`).
          about: small things of JSON that `restore` gives back.
          config: of the run, as JSON.

        Raises:
          CheckpointError: this or the checkpoint before could not be written; those that are there stay.
        """
        self.wait()
        if jax.process_index() == 0:
            self._prune()
        trees = {PARAMS: params, TRAIN: named(train)}
        run = {"step": step, FROZEN: frozen, "about": about}
        run["checksums"] = {name: checksums(tree) for name, tree in trees.items()}
        self._handler.texts = self._texts | {"training.json": config, RUN: _json(run)}
        with self._writing(self.path(step)):
            arrays = {name: self._layout(tree) for name, tree in trees.items()}
            self._saver.save(self.path(step), args=_StepArgs(**arrays), force=True)

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole.

        Raises:
          CheckpointError: it could not be written.
        """
        with self._writing(self.folder):
            self._saver.wait_until_finished()

    def restore(self, params: Any, frozen: Any, train: Any) -> Restored | None:
        """The newest checkpoint that is whole, or none. What turns out to be damaged is set aside and named.

        Args:
          params, frozen, train: jax.ShapeDtypeStructs with the shardings that the arrays are to have.

        Raises:
          CheckpointError: every checkpoint is damaged.
        """
        damaged: list[str] = []
        while (step := _of_first_process(max(self.steps(), default=-1))) >= 0:
            try:
                return self._read(step, params, frozen, train, damaged)
            except CheckpointError as error:
                damaged.append(str(error))
            if jax.process_index() == 0:  # no longer counted, but kept for whoever wants to look
                (self.path(step) / RUN).rename(self.path(step) / DAMAGED)
            wait_for_all(f"{step} is set aside")
        if damaged:
            raise CheckpointError(f"{self.folder}: no whole checkpoint is left: {'; '.join(damaged)}")
        return None

    def clear(self) -> None:
        """Removes what a killed run left half-written."""
        if jax.process_index() == 0 and self.folder.exists():
            for path in self.folder.iterdir():
                half = path.name.isdigit() and not (path / RUN).exists() and not (path / DAMAGED).exists()
                if half or TEMPORARY in path.name:
                    path.rmtree()
        wait_for_all("what was half-written is gone")

    def _read(self, step: int, params: Any, frozen: Any, train: Any, damaged: list[str]) -> Restored:
        path, trees, sums, about, problem = self.path(step), {}, {}, {}, ""
        wanted = {path / PARAMS: params, path / TRAIN: named(train)}
        try:
            run = read_object(path / RUN)
            about, sums = run["about"], {path / name: known for name, known in run["checksums"].items()}
            if frozen:
                wanted[self.folder / FROZEN] = frozen
                sums[self.folder / FROZEN] = read_object(self.folder / FROZEN_SUMS)
            trees = {folder: _restore(folder, tree) for folder, tree in wanted.items()}
        except Exception as error:  # tensorstore and Orbax raise many kinds for a damaged file
            problem = f"{path}: cannot be read ({first_line(error)})"
        if not _everywhere(not problem):  # before the next collective: a process that failed would not come to it
            raise CheckpointError(problem or f"{path}: cannot be read by another process")
        for folder, tree in trees.items():
            found = checksums(tree)
            if wrong := [name for name in found if found[name] != sums[folder].get(name)]:
                raise CheckpointError(f"{folder}: damaged: {wrong[0]} does not have the checksum it was saved with")
        moments = jax.tree.unflatten(jax.tree.structure(train), [trees[path / TRAIN][name] for name in named(train)])
        return Restored(step, trees[path / PARAMS], trees.get(self.folder / FROZEN, {}), moments, about, damaged)

    def _layout(self, tree: Any) -> Any:
        """How arrays are stored: by the rules of layout.py, the optimizer's moments as their parameters."""

        def args(key, _):
            return save_args(any(path_name(key).endswith(name) for name in self._stacked))

        return ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map_with_path(args, tree))

    def _prune(self) -> None:
        scores = {step: self.scores(step) or {} for step in self.steps()}
        for step in set(scores) - self.retention.kept(scores):
            (self.path(step) / RUN).unlink()  # first: what is half-removed is no checkpoint
            self.path(step).rmtree()

    @contextlib.contextmanager
    def _writing(self, path: epath.Path):
        try:
            with quiet():
                yield
        except Exception as error:  # as many kinds as there are file systems
            steps = self.steps()
            newest = f"the newest whole one is {self.path(steps[-1]).name}" if steps else "there is none yet"
            raise CheckpointError(
                f"{path}: a checkpoint could not be written ({first_line(error)}); {newest}. "
                "Make room or mend the cause, then run the same command again"
            ) from error


class _StepHandler(ocp.CompositeCheckpointHandler):
    """Several trees of arrays in a folder, and files of text, which the first process adds before it is named."""

    texts: Mapping[str, str]

    def finalize(self, directory: epath.Path):
        super().finalize(directory)
        for name, text in self.texts.items():
            (directory / name).write_text(text)


@ocp.args.register_with_handler(_StepHandler, for_save=True, for_restore=True)
class _StepArgs(ocp.args.Composite):
    pass


def _of_saving(record: logging.LogRecord) -> bool:
    """Not the tracebacks that Orbax's thread logs: what it could not write is raised by the next call."""
    return record.threadName != "async_save"


def _restore(folder: epath.Path, target: Any) -> Any:
    """Without Orbax's barriers, which a process that cannot read would not come to."""
    with quiet():
        args = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
        return ocp.PyTreeCheckpointHandler().restore(folder, args=args)


def _everywhere(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def _of_first_process(number: int) -> int:
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number)))


def _write(path: epath.Path, text: str) -> None:
    """Whole or not at all: an object store writes so anyhow, a local disk by renaming."""
    temporary = path.parent / f"{path.name}.unfinished"
    temporary.write_text(text)
    temporary.replace(path)


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"
