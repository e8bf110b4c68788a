"""A task with a known best: replies of four tokens, the reward the share of even ones, so that 1 is the most there is
and 0.5 is chance. Does every estimator come to 0.95 of it, with every seed, within so many updates?

    python -m benchmarks.rl_toy [--updates 60] [--seeds 5]

The policy is a model of random weights with sound in its prompts, 24 replies an update (tests/rl/runs.py). Exit code 1
where any run does not come there.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from stepaudio_jax.rl import ppo
from tests.rl import runs

BASELINES = ("critic", "grpo", "rloo", "reinforce++")
BAR = 0.95


def first_above(rewards: list[float], window: int = 3) -> int | None:
    """The update at which the mean of so many first was over the bar."""
    means = np.convolve(rewards, np.ones(window) / window, "valid")
    reached = np.flatnonzero(means >= BAR)
    return int(reached[0]) + window if len(reached) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    console = Console(width=100)
    table = Table(title=f"updates until the mean reward of three is {BAR} of the best, within {args.updates}")
    for name in ("baseline", *(f"seed {seed}" for seed in range(args.seeds)), "seconds"):
        table.add_column(name, justify="left" if name == "baseline" else "right")
    missed = 0
    for baseline in BASELINES:
        options = ppo.PPO(samples=8, baseline=baseline, critic_minibatches=2)
        start, found = time.monotonic(), []
        for seed in range(args.seeds):
            found.append(first_above(runs.learn(options, updates=args.updates, seed=seed, rate=1e-2)))
            console.print(f"{baseline}, seed {seed}: {found[-1]}", highlight=False)
        missed += found.count(None)
        table.add_row(baseline, *(str(each or "never") for each in found), f"{time.monotonic() - start:.0f}")
    console.print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
