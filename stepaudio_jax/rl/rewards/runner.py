"""Rewards of many samples, some in worker processes: whatever a reward does, the run goes on and ends in time."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

from stepaudio_jax.rl.rewards.pool import Batch, Task, Worker
from stepaudio_jax.rl.rewards.registry import AnyReward, Resolved, describe, outcome, resolve, spread
from stepaudio_jax.rl.rewards.sample import Sample, Scored


class RewardRunner:
    """Scores samples; a context manager, whose processes end with it, or with this process.

    with RewardRunner() as runner:
        scored = runner.score(samples, "exact")                     # one reward for all
        scored = runner.score(samples, ["maths", Reward("audio", {"accuracy": "choice"})])  # one for each

    A reward that raises, hangs, ends its process or returns something other than a number within its bounds is an
    error of that sample alone (`Scored`), never a 0. Rewards marked as cheap run in this process; the others in worker
    processes, which are started when first needed, kept, and replaced where one is lost. Processes are started afresh,
    not forked. Two threads that share a runner take turns; two runners do not know of each other.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        allow_code: bool = False,
        memory: int | None = 4 << 30,
        batch_seconds: float = math.inf,
    ):
        """
        Args:
          workers: most processes at once; by default as many as there are processors, up to 8.
          allow_code: the operator's word that this machine may run, confined, programs that a model wrote.
          memory: most bytes of address space of a worker; None for no limit.
          batch_seconds: how long one call of `score` may work; samples not scored by then are errors.

        Raises:
          ValueError: a number that is not positive.
        """
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        for name, value in (("workers", self.workers), ("memory", memory), ("batch_seconds", batch_seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, found {value}")
        self.allow_code, self.memory, self.batch_seconds = allow_code, memory, batch_seconds
        self._idle: list[Worker] = []
        self._turn = threading.Lock()
        self._starter: ThreadPoolExecutor | None = None
        self._folder: str | None = None
        self._finish: weakref.finalize | None = None
        self._closed = False

    def score(self, samples: Sequence[Sample], rewards: AnyReward | Sequence[AnyReward]) -> list[Scored]:
        """The outcome for each sample, in order.

        Args:
          rewards: one for all samples or one for each, as `Reward.of` takes them.

        Raises:
          ValueError: before anything is scored: an unknown reward, options it does not take, another number of rewards
            than of samples, or a reward that runs the model's programs where that is not allowed.
          RuntimeError: the runner is closed, or worker processes do not start.
        """
        resolved = self._resolve(samples, rewards)
        with self._turn:
            if self._closed:
                raise RuntimeError("reward runner: is closed")
            deadline = time.monotonic() + self.batch_seconds
            scored: list[Scored | None] = [None] * len(samples)
            tasks = []
            for index, (sample, each) in enumerate(zip(samples, resolved, strict=True)):
                if each.cheap:
                    scored[index] = outcome(each.function, sample)
                    continue
                if type(sample.extra) is not dict:
                    sample = dataclasses.replace(sample, extra=dict(sample.extra))
                try:
                    message = ForkingPickler.dumps((each.reward, self.allow_code, sample))
                except Exception as error:
                    scored[index] = Scored(None, f"unsendable: to a worker process: {describe(error)}")
                else:
                    tasks.append(Task(index, bytes(message), each.seconds))
            if tasks:
                Batch(tasks, self._idle, self.workers, self._start, deadline, scored.__setitem__).run()
            return [each for each in scored if each is not None]

    def close(self) -> None:
        """Ends the worker processes; again does nothing. Waits for a `score` in another thread."""
        with self._turn:
            self._closed = True
            if self._finish is not None:
                self._finish()

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _resolve(self, samples: Sequence[Sample], rewards: AnyReward | Sequence[AnyReward]) -> Sequence[Resolved]:
        each = list(spread(rewards, len(samples), "rewards"))
        known: dict[int, Resolved] = {}
        for reward in each:
            if id(reward) not in known:
                known[id(reward)] = resolve(reward, allow_code=self.allow_code)
        return [known[id(reward)] for reward in each]

    def _start(self) -> Worker:
        """A new worker. Linux ends it with the thread that started it, so that is one which lives as long as this."""
        if self._starter is None or self._folder is None:
            self._starter = ThreadPoolExecutor(1, "reward-workers")
            self._folder = tempfile.mkdtemp(prefix="stepaudio-rewards-")
            self._finish = weakref.finalize(self, _finish, os.getpid(), self._idle, self._starter, self._folder)
        return self._starter.submit(Worker, self._folder, self.memory).result()


def _finish(process: int, idle: list[Worker], starter: ThreadPoolExecutor, folder: str) -> None:
    """Of the process that started them only: a fork of it, at its end, leaves them alone."""
    if os.getpid() == process:
        while idle:
            idle.pop().kill()
        starter.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
