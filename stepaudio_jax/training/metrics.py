"""What a run says of itself: metrics.jsonl, TensorBoard, and the rates in both.

A line of metrics.jsonl is what one step, one evaluation or one event has to say, with its `step`:

  loss, accuracy, grad_norm, tokens (trained on), loss/SOURCE…    of that step
  think_tokens                                                    of that step: mean length of the think blocks that
                                                                  are trained on, the line that closes them included
  learning_rate
  tokens_per_second, tokens_per_second_per_chip, mfu, padding     since the line before: tokens that are no padding;
  data_wait, compile_seconds                                      shares of 1; seconds; without what compiling took
  seconds                                                         since this process began to train
  event                                                           in words: resumed, skipped, stopped
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from stepaudio_jax.parallel.chips import parse_topology

FILE = "metrics.jsonl"


class MetricsLog:
    """Writes on the first process only; the others' calls do nothing."""

    def __init__(self, workdir: epath.Path, *, after: int = 0, evaluated: bool = True):
        """
        Args:
          after: the step the run goes on from. What an earlier process said of later ones is taken back.
          evaluated: whether what it said of an evaluation at that step stands; if not, there will be another.
        """
        self._first = jax.process_index() == 0
        self._file, self._board = workdir / FILE, None
        if not self._first:
            return
        if self._file.exists():
            lines = self._file.read_text().splitlines(keepends=True)
            unfinished = workdir / f"{FILE}.unfinished"
            unfinished.write_text("".join(line for line in lines if _stays(line, after, evaluated)))
            unfinished.replace(self._file)
        self._board = _tensorboard(workdir / "tensorboard", after)

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds a line. A number that is not finite is left out, as of a source that is not in a batch."""
        if not self._first:
            return
        kept = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        with self._file.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        if self._board is not None:
            for name, value in kept.items():
                if name not in ("step", "event"):
                    self._board.add_scalar(name, value, kept["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, none if there is none."""
    file = workdir / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_evaluation(values: Mapping[str, Any]) -> bool:
    """Of a line of metrics.jsonl."""
    return "loss" not in values and "event" not in values


def _stays(line: str, after: int, evaluated: bool) -> bool:
    try:
        values = json.loads(line)
    except ValueError:  # cut off by a kill
        return False
    return values["step"] < after + (evaluated or not is_evaluation(values))


def _tensorboard(folder: epath.Path, after: int) -> Any:
    """None without tensorboardX, which the extra `train` brings: the same numbers are in metrics.jsonl."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)


class Meter:
    """Rates since they were last asked for, and since the beginning."""

    def __init__(self, flops: float, topology: str, devices: int):
        """
        Args:
          flops: of a step (Program.flops).
          topology: the config's, whose datasheet MFU is counted by; only on a TPU.
          devices: of the mesh.
        """
        self._flops = flops
        self._chip = parse_topology(topology).chip if jax.default_backend() == "tpu" else None
        self._chips = devices // (self._chip.devices if self._chip else 1)
        self._compiled = _compile_clock()
        self._begun = self._since = time.monotonic()
        self._compiled_since = self._compiled[0]
        self._steps, self._tokens, self._places, self._waited = 0, 0, 0, 0.0

    def step(self, tokens: int, places: int, waited: float) -> None:
        """Counts a step.

        Args:
          tokens: that are no padding.
          places: for tokens.
          waited: seconds, for the batch.
        """
        self._steps, self._tokens, self._places = self._steps + 1, self._tokens + tokens, self._places + places
        self._waited += waited

    def rates(self) -> dict[str, float]:
        now, compiled = time.monotonic(), self._compiled[0] - self._compiled_since
        seconds = max(now - self._since - compiled, 1e-9)
        rate = self._tokens / seconds
        values = {
            "tokens_per_second": rate,
            "tokens_per_second_per_chip": rate / self._chips,
            "padding": 1 - self._tokens / max(self._places, 1),
            "data_wait": self._waited / seconds,
            "seconds": round(now - self._begun, 1),
        }
        if compiled > 0:
            values["compile_seconds"] = round(compiled, 1)
        if self._chip is not None:
            values["mfu"] = self._flops * self._steps / seconds / (self._chip.flops * self._chips)
        self._since, self._compiled_since = now, self._compiled[0]
        self._steps, self._tokens, self._places, self._waited = 0, 0, 0, 0.0
        return values


@functools.cache
def _compile_clock() -> list[float]:
    """Seconds that XLA has compiled for in this process, from now on; one listener, since they cannot be taken back."""
    total = [0.0]

    def listen(event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            total[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return total
