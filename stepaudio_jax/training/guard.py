"""The guard against divergence: an update from a loss that is not finite, or a spike, is not applied.

The decision is made inside the jitted step, since the old state is given away to it: on the devices, `where` keeps the
old parameters and moments. The run then stops with a report, or goes on and counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.step import Metrics, TrainState


class DivergenceError(ValueError):
    """The loss is not finite or has leapt; the message says where, from what batch, and what may be done."""


GuardedStep = Callable[[TrainState, Any, Float[Array, ""]], tuple[TrainState, Metrics]]


def guarded(step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]) -> GuardedStep:
    """A step that keeps the state as it was, but for the count of steps, where the loss or the gradient is not finite
    or the loss is above a limit. Adds `skipped` to the metrics."""

    def attempt(state: TrainState, batch: Any, limit: Float[Array, ""]) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        loss = metrics["loss"]
        good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"]) & (loss <= limit)
        params, opt_state = jax.tree.map(
            lambda after, before: jnp.where(good, after, before),
            (new.params, new.opt_state),
            (state.params, state.opt_state),
        )
        return new._replace(params=params, opt_state=opt_state), metrics | {"skipped": ~good}

    return attempt


class Guard:
    """What a loss is held against: the median of those before it.

    The trainer learns of a step's loss while the next one runs. So the limit of a step is made of the losses up to the
    last but one, always, which makes it the same in a run that was interrupted.
    """

    def __init__(self, config: Config, state: Mapping[str, Any] | None = None):
        """
        Args:
          config: action ("stop" or "skip"), spike (a factor), window (steps), most_skips (within a window).
          state: of `state`, to go on.

        Raises:
          ValueError: another action.
        """
        if config.action not in ("stop", "skip"):
            raise ValueError(f'guard.action: expected "stop" or "skip", found "{config.action}"')
        self._config = config
        self._losses: list[tuple[int, float]] = [(step, loss) for step, loss in (state or {}).get("losses", [])]
        self._skips: list[int] = list((state or {}).get("skips", []))

    def state(self) -> dict[str, Any]:
        return {"losses": self._losses, "skips": self._skips}

    def limit(self, step: int) -> float:
        """The highest loss a step may have (nats per token): infinite until there is a window of losses."""
        median = self._median(step)
        return math.inf if median is None else self._config.spike * max(median, 1.0)

    def check(self, step: int, values: Mapping[str, float], batch: Mapping[str, Any]) -> str | None:
        """Takes note of a step's loss, in order; of a step that was skipped, returns what to tell.

        Args:
          values: its metrics.
          batch: which batch it was (the source's state).

        Raises:
          DivergenceError: it was skipped, and that was to stop the run or was one time too many.
        """
        window = self._config.window
        if not values["skipped"]:
            self._losses = [*self._losses, (step, values["loss"])][-window - 2 :]
            return None
        self._skips = [*(skip for skip in self._skips if skip > step - window), step]
        median = self._median(step)
        usual = "" if median is None else f" (median of {window} steps: {median:.3g})"
        parts = "".join(f", {name} {value:.3g}" for name, value in values.items() if name.startswith("loss/"))
        what = f"the loss is {values['loss']:.3g}{usual}{parts}, the gradient's norm {values['grad_norm']:.3g}"
        told = f"step {step}: {what}; its update was not applied; batch {dict(batch)}"
        if self._config.action == "stop":
            raise DivergenceError(
                f"{told}. Lower optim.learning_rate, or go on without such steps: "
                "--config.guard.action=skip --allow-change=guard.action"
            )
        if len(self._skips) > self._config.most_skips:
            raise DivergenceError(
                f"{told}: {len(self._skips)} of {window} steps, more than guard.most_skips {self._config.most_skips}. "
                "Lower optim.learning_rate"
            )
        return told

    def _median(self, step: int) -> float | None:
        known = [loss for number, loss in self._losses if number <= step - 2][-self._config.window :]
        return statistics.median(known) if len(known) == self._config.window else None
