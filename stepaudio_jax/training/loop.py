"""The supervised trainer: a config in, a checkpoint folder out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.data import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.sources import miniature_batches
from stepaudio_jax.training.stage import lora_config, prepare
from stepaudio_jax.training.step import TrainState, merge

Evaluate = Callable[[StepAudio, Tokenizer], dict[str, float]]


def train(config: Config, workdir: epath.PathLike, *, evaluate: Evaluate | None = None) -> epath.Path:
    """Trains by a config such as configs/tiny.py and writes `workdir/checkpoint`.

    Beside it: config.json, the resolved configuration, metrics.jsonl, one line per logged step, and `latest`, the
    checkpoint of every `config.eval_every` steps. Over several processes, each runs this; the first writes the logs.

    Args:
      evaluate: called with the model every `config.eval_every` steps; its numbers go to the metrics.

    Raises:
      FileExistsError: the folder already holds a finished run.
      FloatingPointError: the loss is not finite; nothing after the last checkpoint is kept.
      MeshError, ShardingError: a mesh that does not fit the devices, or sizes that do not divide over it.
    """
    workdir = epath.Path(workdir)
    target = workdir / "checkpoint"
    if target.exists():
        raise FileExistsError(f"{target}: a finished run lies here; choose another --workdir or remove it")
    if "curriculum" not in config.data:
        raise ValueError(
            "config.data: names no source of examples; pipelines for your own data are still to come. Today this "
            "config can be planned (stepaudio plan), and configs/tiny.py trained"
        )
    if "lora" in config and not config.init:
        raise ValueError("config.init: adapters are trained beside the weights of a checkpoint; name it")
    stage = prepare(config, make_mesh(config.mesh))
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

    backend = miniature.build_tokenizer(config.tokenizer.vocab_size)
    tokenizer = Tokenizer(backend, "the miniature's tokenizer")
    jitted = stage.program.jit()
    graphdef = nnx.graphdef(stage.model)

    def save(path: epath.Path, state: TrainState) -> StepAudio:
        lora, rest = lora_config(config), {"generation": config.generation.to_dict(), "overwrite": True}
        model = merge(graphdef, state.params, state.frozen, dtype=None if lora else jnp.dtype(config.save_dtype))
        if lora is None:
            checkpoints.save(path, model, backend.to_str(), **rest)
        else:
            modules = [name for name in config.trainable if name != "lora"]
            checkpoints.save_adapters(path, model, lora, backend.to_str(), base=config.init, modules=modules, **rest)
        return model

    shards = stage.rules.size(stage.rules.split("batch"))
    batches = miniature_batches(config.data, tokenizer, config.seed, shards=shards)

    def step(state: TrainState, batch: Batch):
        return jitted(state, stage.place(batch))

    def look(state: TrainState) -> dict[str, float]:
        """Keeps what there is so far, then scores it."""
        model = save(workdir / "latest", state)
        if evaluate is None:
            return {}
        if jax.process_count() > 1:  # the first process examines a copy of its own
            whole = multihost_utils.process_allgather(nnx.to_pure_dict(nnx.state(model, nnx.Param)), tiled=True)
            if jax.process_index() > 0:
                return {}
            model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, whole))
        return evaluate(model, tokenizer)

    state = _loop(config, workdir, step, stage.new_state(config), batches, look)
    save(target, state)
    return target


def _loop(
    config: Config,
    workdir: epath.Path,
    step: Callable,
    state: TrainState,
    batches: Iterator[Batch],
    evaluate: Callable[[TrainState], dict[str, float]],
) -> TrainState:
    columns = (
        TextColumn("{task.completed}/{task.total} steps"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} tokens/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)

    first = jax.process_index() == 0

    def log(values: dict[str, float]):
        if not first:
            return
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    with Progress(*columns, console=console, disable=not (first and console.is_terminal)) as progress:
        task = progress.add_task("train", total=config.steps, loss=float("nan"), rate=0.0)
        start, seen = time.monotonic(), 0
        for number in range(1, config.steps + 1):
            batch = next(batches)
            state, metrics = step(state, batch)
            seen += int(batch.segment_ids.sum())
            if number % config.log_every == 0 or number == config.steps:
                values = {name: float(value) for name, value in metrics.items()}
                seconds = time.monotonic() - start
                if not values["loss"] < float("inf"):
                    raise FloatingPointError(f"step {number}: the loss is {values['loss']}; lower optim.learning_rate")
                values |= {"step": number, "seconds": round(seconds, 1), "tokens_per_second": seen / seconds}
                progress.update(task, completed=number, loss=values["loss"], rate=seen / seconds)
                if first and not console.is_terminal and number % (10 * config.log_every) == 0:
                    console.print(
                        f"step {number}/{config.steps}  loss {values['loss']:.3f}  "
                        f"accuracy {values['accuracy']:.3f}  {seconds:.0f} s"
                    )
                log(values)
            if number % config.eval_every == 0 and (scores := evaluate(state)):
                log({"step": number} | scores)
                console.print(f"step {number}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    return state
