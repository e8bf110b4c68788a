"""Runs small enough for tests, in this process or in others that are forked from one which has imported everything."""

import functools
import hashlib
import json
import multiprocessing
import socket
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx

from configs import tiny
from stepaudio_jax import checkpoints, miniature, training
from stepaudio_jax.config import PRESETS
from stepaudio_jax.parallel import distributed
from stepaudio_jax.training import loop
from tests import small

PRESETS["small"] = small.config(max_position_embeddings=1024)
miniature.build_tokenizer = functools.cache(functools.partial(miniature.build_tokenizer, samples=200))
miniature.build_tokenizer(512)


def config(**changes) -> ml_collections.ConfigDict:
    """Twelve steps of two rows of text with a model of some thousand parameters; the encoder is frozen."""
    config = tiny.get_config()
    config.update({"model": "small", "steps": 12, "log_every": 1, "eval_every": 5, "save_dtype": "float32"})
    config.scan_layers = True  # compiles sooner
    config.trainable = ("adaptor", "decoder")
    config.tokenizer.vocab_size = 512
    config.checkpoints.save_every = 4
    config.optim.warmup_steps = 1
    config.data.update({"batch_size": 2, "batches_per_group": 3, "buckets": ((96, 0),)})
    config.data.text_share = 1.0
    config.update_from_flattened_dict(changes)
    return config


SOUND = {"data.text_share": 0.1, "data.buckets": ((256, 65_280),)}
"""Changes of the config for rows with sound, which take longer to compile."""


def look(model, tokenizer) -> dict[str, float]:
    """Reads every parameter, as an evaluation would."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return {"norm": float(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in leaves))}


def lines(workdir, name: str = "loss") -> list[dict]:
    """Those lines of the metrics that have a number of this name."""
    read = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if name in line]


def parameters(path) -> dict:
    return nnx.to_pure_dict(nnx.state(checkpoints.load(path)[0], nnx.Param))


def same_to_the_bit(workdir, truth) -> None:
    """Losses, gradient norms, evaluations, and final parameters of two runs."""
    for name in ("loss", "norm"):
        keys = ("step", "loss", "accuracy", "grad_norm", "tokens", "norm")
        found, expected = ([[line.get(k) for k in keys] for line in lines(run, name)] for run in (workdir, truth))
        assert found == expected
    jax.tree.map(np.testing.assert_array_equal, *(parameters(Path(run) / "checkpoint") for run in (workdir, truth)))


class Recorder:
    """A source that notes the digest of every batch it gives, by its position.

    Args:
      pause: seconds that a batch is waited for: each of them, or the first two and the rest.
    """

    def __init__(self, source, path: Path, pause: float | tuple[float, float]):
        self._source, self._path, self._given = source, path, 0
        self._pause = pause if isinstance(pause, tuple) else (pause, pause)

    def __next__(self):
        time.sleep(self._pause[self._given >= 2])
        self._given += 1
        position, batch = self.state(), next(self._source)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(batch)))
        with self._path.open("a") as file:
            file.write(json.dumps([position, digest.hexdigest()]) + "\n")
        return batch

    def state(self):
        return self._source.state()

    def restore(self, state):
        self._source.restore(state)


def batches(workdir, process: int = 0) -> set[str]:
    """The batches that a process ever gave, each with its position and digest."""
    return set((Path(workdir) / f"batches{process}").read_text().splitlines())


def given(workdir) -> int:
    """How many batches the first process was given."""
    path = Path(workdir) / "batches0"
    return len(path.read_text().splitlines()) if path.exists() else 0


def run(workdir, changes=None, process=0, port=0, pause=0.0, slow_look=0.0, deaf=False, **options) -> None:
    """Trains; the body of a process.

    Args:
      changes: of `config`.
      port, process: as one of two processes that meet there.
      pause: of a `Recorder`.
      slow_look: seconds that the evaluation takes, which leaves a file "looking" first.
      deaf: waits for data cannot be broken off, like compilations.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    if port:
        distributed.start(coordinator=f"127.0.0.1:{port}", processes=2, process=process)
    made = loop.batch_source
    Path(workdir).mkdir(exist_ok=True)
    loop.batch_source = lambda *args: Recorder(made(*args), Path(workdir) / f"batches{process}", pause)
    loop.report.write = lambda *_: None  # half the time of so short a run
    if deaf:
        loop.Interrupts._handle = lambda *_: None

    def evaluate(model, tokenizer):
        if slow_look:
            (Path(workdir) / "looking").touch()
            time.sleep(slow_look)
        return look(model, tokenizer)

    try:
        training.train(config(**(changes or {})), workdir, evaluate=evaluate, **options)
    except training.Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None


def start(workdir, *, body=run, **arguments) -> multiprocessing.process.BaseProcess:
    """A process that runs `run`, or another body."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=body, args=(workdir,), kwargs=arguments)
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
