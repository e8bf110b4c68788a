"""The supervised trainer: a config in, a checkpoint folder out. Ended at any moment, it goes on where it was.

A run is a function of its config: batches come by position from the source, initial weights from the seed, and no step
draws a random number. So its state is the train state, the source's position and the guard's memory, and a run that
was interrupted ends with the same bits as one that was not, on the same mesh.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from rich.console import Console

from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints import Retention, RunCheckpoints, wait_for_all
from stepaudio_jax.models import StepAudio
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training import report
from stepaudio_jax.training.changes import check_unchanged, written
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.guard import DivergenceError, Guard
from stepaudio_jax.training.initial import check_init, lora_config
from stepaudio_jax.training.metrics import Meter, MetricsLog
from stepaudio_jax.training.optimizer import make_schedule
from stepaudio_jax.training.profiler import Profiler
from stepaudio_jax.training.progress import Bar
from stepaudio_jax.training.signals import Interrupts, Stopped
from stepaudio_jax.training.sources import BatchSource, batch_source, run_tokenizer
from stepaudio_jax.training.stage import Stage, prepare
from stepaudio_jax.training.step import TrainState, merge

Evaluate = Callable[[StepAudio, Tokenizer], dict[str, float]]


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    evaluate: Evaluate | None = None,
    allow_change: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
) -> epath.Path:
    """Trains by a config such as configs/tiny.py, or goes on with the run that lies there: writes `workdir/checkpoint`.

    Beside it: config.json, the resolved configuration; checkpoints/ (checkpoints.RunCheckpoints), one every
    `config.checkpoints.save_every` steps, before every evaluation and at the end; metrics.jsonl and tensorboard/
    (training/metrics.py); report.html. Over several processes, each runs this; the first writes what is not arrays.

    Args:
      evaluate: called with the model every `config.eval_every` steps; its numbers go to the metrics and decide which
        checkpoint is best.
      allow_change: keys of the config that may differ from those the run was begun with.
      profile: first step to trace, and the one after the last.

    Raises:
      ConfigChangeError: another config than the run's.
      DivergenceError: see training/guard.py; the checkpoints are those of before.
      Stopped: by a signal, after the state was saved.
      CheckpointError: a checkpoint could not be written, or none of those there read.
      ConfigError: the checkpoint that `config.init` names is of other sizes than `config.model`.
      MeshError, ShardingError: a mesh that does not fit the devices, or sizes that do not divide over it.
      OSError: a workdir that cannot be written.
    """
    workdir = epath.Path(workdir)
    with Interrupts() as interrupts:
        changes = check_unchanged(config, workdir / "config.json", allow_change)
        if lora_config(config) is not None and not config.init:
            raise ValueError("config.init: adapters are trained beside the weights of a checkpoint; name it")
        check_init(config)
        stage = prepare(config, make_mesh(config.mesh))
        tokenizer, tokenizer_json = run_tokenizer(config)
        source = batch_source(config, tokenizer, tokenizer_json, stage, workdir)
        saved = run_checkpoints(config, workdir, stage.model, tokenizer_json)
        if (workdir / "checkpoint").exists() and max(saved.steps(), default=config.steps) >= config.steps:
            return workdir / "checkpoint"
        wait_for_all("every process has read what was there")
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(written(config))
        saved.clear()
        run = _Run(config, workdir, stage, tokenizer, source, saved, interrupts, evaluate)
        state = run.begin(changes, profile)
        try:
            state = run.steps(state)
            run.export(state)
        except Stopped as stopped:
            run.tell(f"{stopped} after step {run.step}; the same command goes on from there")
            raise
        finally:
            run.close()
    return workdir / "checkpoint"


@dataclasses.dataclass
class _Done:
    """A step that was given to the devices, and what it will have to say."""

    step: int
    metrics: Any
    before: dict[str, Any]
    """The source's position before its batch."""
    places: int
    waited: float


class _Run:
    """What the steps of a run share."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        stage: Stage,
        tokenizer: Tokenizer,
        source: BatchSource,
        saved: RunCheckpoints,
        interrupts: Interrupts,
        evaluate: Evaluate | None,
    ):
        self.config, self.workdir, self.stage, self.tokenizer = config, workdir, stage, tokenizer
        self.source, self.saved, self.interrupts, self.evaluate = source, saved, interrupts, evaluate
        self.lora = lora_config(config)
        self.console = Console(stderr=True, quiet=jax.process_index() > 0)
        self.jitted = stage.program.jit()
        self.schedule = make_schedule(config.optim, config.steps)
        self.graphdef = nnx.graphdef(stage.model)

    def begin(self, changes: Sequence[str], profile: tuple[int, int] | None) -> TrainState:
        """The state to go on from: of the newest checkpoint, or a fresh one."""
        abstract = self.stage.abstract_state()
        own = {} if self.lora else abstract.frozen  # beside adapters it stays in the checkpoint they are of
        restored = self.saved.restore(abstract.params, own, (abstract.opt_state, abstract.step))
        self.step = self.saved_step = restored.step if restored else 0
        # A checkpoint is written before it is evaluated; the run may have been ended in between.
        self.owes_look = self.step > 0 and self._evaluates(self.step) and self.saved.scores(self.step) is None
        self.log = MetricsLog(self.workdir, after=self.step, evaluated=not self.owes_look)
        self.guard = Guard(self.config.guard, restored.about["guard"] if restored else None)
        self.profiler = Profiler(self.workdir / "profile", profile)
        if restored is not None and self.lora:
            checkpoints.read_about(self.saved.path(self.step))  # refuses a base whose weights have changed since
        fresh = self.stage.new_state(self.config) if restored is None or self.lora else None
        if restored is None:
            assert fresh is not None
            state = fresh
            if state.frozen and not self.lora:
                self.saved.save_frozen(state.frozen)
        else:
            for damaged in restored.damaged:
                self.tell(f"set aside: {damaged}")
            self.tell("; ".join([f"goes on after step {self.step}", *changes]))
            self.source.restore(restored.about["source"])
            frozen = restored.frozen if fresh is None else fresh.frozen
            state = TrainState(restored.params, frozen, *restored.train)
        self.position = self.source.state()
        return state

    def steps(self, state: TrainState) -> TrainState:
        """All steps that are left. While one runs, the metrics of the one before are read."""
        config, pending = self.config, None
        self.meter = Meter(self.stage.program.flops, config.topology, self.stage.rules.mesh.size)
        if self.owes_look:
            self._look(state)
        with Bar(self.console, config.steps, self.step) as self.bar:
            for number in range(self.step + 1, config.steps + 1):
                try:
                    state, done = self._step(number, state)
                except Stopped:
                    self._settle(pending)
                    self._save(state)
                    raise
                self._settle(pending)
                pending, self.interrupts.nothing_to_lose = done, False
                stopped, evaluates = self.interrupts.stop_after(number), self._evaluates(number)
                if stopped or evaluates or number % config.checkpoints.save_every == 0 or number == config.steps:
                    self._settle(pending)
                    pending = None
                    self._save(state)
                if stopped:
                    raise stopped
                if evaluates:
                    self._look(state)
        return state

    def export(self, state: TrainState) -> None:
        """The finished model, as `workdir/checkpoint`."""
        self.saved.wait()
        path, rest = self.workdir / "checkpoint", {"generation": self.config.generation.to_dict(), "overwrite": True}
        text = self.tokenizer.backend.to_str()
        if self.lora is None:
            checkpoints.save(path, self._model(state), text, **rest)
        else:
            base, modules = self.config.init, whole_modules(self.config)
            checkpoints.save_adapters(path, self._model(state), self.lora, text, base=base, modules=modules, **rest)

    def close(self) -> None:
        """However it ended: what is being written is finished, and the report made."""
        self.profiler.close()
        self.log.close()
        self.saved.wait()
        if jax.process_index() == 0:
            report.write(self.workdir, self.saved.steps(), self.console)

    def tell(self, what: str) -> None:
        self.console.print(what, soft_wrap=True, markup=False, highlight=False)
        self.log.log({"step": self.step, "event": what})

    def _step(self, number: int, state: TrainState) -> tuple[TrainState, _Done]:
        begun, before = time.monotonic(), self.position
        with self.interrupts.breakable():
            batch = next(self.source)
        waited = time.monotonic() - begun
        if self.profiler.before(number, self.interrupts.profile_wanted):
            self.interrupts.profile_wanted = False
        placed = self.stage.place(batch)
        state, metrics = self.jitted(state, placed, np.float32(self.guard.limit(number)))
        self.step, self.position = number, self.source.state()
        return state, _Done(number, metrics, before, placed.tokens.size, waited)

    def _settle(self, done: _Done | None) -> None:
        """Waits for a step and reads its metrics: for the guard, and for the log where it is due."""
        if done is None:
            return
        values = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
        self.meter.step(int(values.pop("filled")), done.places, done.waited)
        try:
            skipped = self.guard.check(done.step, values, done.before)
        except DivergenceError as error:
            self.tell(f"stopped: {error}")
            raise
        if skipped:
            self.tell(f"skipped: {skipped}")
        del values["skipped"]
        if done.step % self.config.log_every == 0 or done.step == self.config.steps:
            rate = float(np.asarray(self.schedule(done.step - 1)))
            values |= {"step": done.step, "learning_rate": rate} | self.meter.rates()
            self.log.log(values)
            self.bar.show(values)
        self.bar.advance(done.step)

    def _save(self, state: TrainState) -> None:
        """Begins to write a checkpoint of the step that was done last, unless it has one."""
        if self.saved_step == self.step:
            return
        self.saved.save(
            self.step,
            state.params,
            (state.opt_state, state.step),
            frozen=bool(state.frozen) and not self.lora,
            about={"source": self.position, "guard": self.guard.state()},
            config=written(self.config),
        )
        self.saved_step = self.step

    def _evaluates(self, step: int) -> bool:
        return self.evaluate is not None and step % self.config.eval_every == 0

    def _look(self, state: TrainState) -> None:
        """Evaluates. The first process does, over several processes on a copy of its own."""
        model = self._model(state)
        if jax.process_count() > 1:
            whole = multihost_utils.process_allgather(nnx.to_pure_dict(nnx.state(model, nnx.Param)), tiled=True)
            if jax.process_index() > 0:
                return
            model = nnx.merge(self.graphdef, jax.tree.map(jnp.asarray, whole))
        assert self.evaluate is not None
        with self.interrupts.breakable():
            scores = self.evaluate(model, self.tokenizer)
        self.log.log({"step": self.step} | scores)
        self.saved.note(self.step, scores)
        self.console.print(f"step {self.step}: " + "  ".join(f"{name} {score:.3f}" for name, score in scores.items()))

    def _model(self, state: TrainState) -> StepAudio:
        dtype = None if self.lora else jnp.dtype(self.config.save_dtype)
        return merge(self.graphdef, state.params, state.frozen, dtype=dtype)


def run_checkpoints(config: Config, workdir: epath.Path, model: StepAudio, tokenizer_json: str) -> RunCheckpoints:
    """Those of a config's run; `model` of arrays or shapes."""
    lora = lora_config(config)
    return RunCheckpoints(
        workdir / "checkpoints",
        model,
        tokenizer_json,
        generation=config.generation.to_dict(),
        texts={checkpoints.LORA: checkpoints.describe(lora, config.init, whole_modules(config))} if lora else None,
        retention=Retention(**{k: v for k, v in config.checkpoints.items() if k != "save_every"}),
    )


def whole_modules(config: Config) -> list[str]:
    """What is trained beside adapters."""
    return [name for name in config.trainable if name != "lora"]
