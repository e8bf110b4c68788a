"""The supervised trainer: a config in, a checkpoint folder out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.sources import miniature_batches
from stepaudio_jax.training.step import TrainState, init_state, make_train_step, merge

Evaluate = Callable[[StepAudio, Tokenizer], dict[str, float]]


def train(config: Config, workdir: epath.PathLike, *, evaluate: Evaluate | None = None) -> epath.Path:
    """Trains by a config such as configs/tiny.py and writes `workdir/checkpoint`.

    Beside it: config.json, the resolved configuration, metrics.jsonl, one line per logged step, and `latest`, the
    checkpoint of every `config.eval_every` steps.

    Args:
      evaluate: called with the model every `config.eval_every` steps; its numbers go to the metrics.

    Raises:
      FileExistsError: the folder already holds a finished run.
      FloatingPointError: the loss is not finite; nothing after the last checkpoint is kept.
    """
    workdir = epath.Path(workdir)
    target = workdir / "checkpoint"
    if target.exists():
        raise FileExistsError(f"{target}: a finished run lies here; choose another --workdir or remove it")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

    model = init_model(config)
    backend = miniature.build_tokenizer(config.tokenizer.vocab_size)
    tokenizer = Tokenizer(backend, "the miniature's tokenizer")
    optimizer = make_optimizer(config.optim, config.steps)
    graphdef, state = init_state(model, optimizer)
    step = jax.jit(
        make_train_step(
            graphdef,
            optimizer,
            remat=config.remat,
            scan_layers=config.scan_layers,
            compute_dtype=jnp.dtype(config.compute_dtype),
        ),
        donate_argnums=0,
    )

    def save(path: epath.Path, state: TrainState) -> StepAudio:
        model = merge(graphdef, state.params, dtype=jnp.dtype(config.save_dtype))
        checkpoints.save(path, model, backend.to_str(), generation=config.generation.to_dict(), overwrite=True)
        return model

    batches = miniature_batches(config.data, tokenizer, config.seed)

    def look(state: TrainState) -> dict[str, float]:
        """Keeps what there is so far, then scores it."""
        model = save(workdir / "latest", state)
        return evaluate(model, tokenizer) if evaluate else {}

    state = _loop(config, workdir, step, state, batches, look)
    save(target, state)
    return target


def init_model(config: Config) -> StepAudio:
    """The model of a config: of the checkpoint `config.init`, or random weights, made under one jit."""
    if config.init:
        return checkpoints.load(config.init, dtype=jnp.float32)[0]
    sizes = StepAudioConfig.preset(config.model)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: StepAudio(sizes, rngs=nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.state(StepAudio(sizes, rngs=nnx.Rngs(config.seed)), nnx.Param))()
    return nnx.merge(graphdef, params)


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

    def log(values: dict[str, float]):
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
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
                if not console.is_terminal and number % (10 * config.log_every) == 0:
                    console.print(
                        f"step {number}/{config.steps}  loss {values['loss']:.3f}  "
                        f"accuracy {values['accuracy']:.3f}  {seconds:.0f} s"
                    )
                log(values)
            if number % config.eval_every == 0 and (scores := evaluate(state)):
                log({"step": number} | scores)
                console.print(f"step {number}: " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    return state
