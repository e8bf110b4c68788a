"""A tiny judge learns from labelled pairs: how well it agrees with the small world's rule on dialogues held out.

    python -m benchmarks.tiny_judge [--comparisons 3000] [--steps 300] [--rows 4]

Supervised training by `configs/reward_model_tiny.py`, from the shipped model, on comparisons in both orders (it reads
transcripts, as a text judge does); then `rl.reward_model.agreement` on comparisons that it has not seen. What was made
lies in the work folder, and a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from benchmarks.rl_effects import KINDS
from stepaudio_jax import checkpoints
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.evals.miniature import HELD_OUT
from stepaudio_jax.inference import EngineOptions
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.judges import EngineJudge
from stepaudio_jax.rl.reward_model import RewardModel, agreement
from stepaudio_jax.rl.reward_model.judge_eval import judge_all, table
from stepaudio_jax.rl.reward_model.labelled import Labelled
from stepaudio_jax.rl.reward_model.small_world import make_labelled
from stepaudio_jax.rl.reward_model.teaching import lessons
from stepaudio_jax.training import read_config, train


def comparisons(count: int, *seed: int) -> list[Labelled]:
    return [make_labelled(np.random.default_rng((*seed, i)), kinds=KINDS, max_events=1) for i in range(count)]


def taught(args: argparse.Namespace, workdir: Path, console: Console) -> str:
    """Its checkpoint."""
    data = workdir / "lessons"
    if not (data / "dataset.json").exists():
        made = [lesson for each in comparisons(args.comparisons, 0, 8) for lesson in lessons(each)]
        write_samples(data, made, Recipe(str(checkpoints.locate("tiny"))))
    config = read_config("configs/reward_model_tiny.py", [f"--config.data.sources.lessons.path={data}"])
    config.init, config.steps, config.eval_every = args.init, args.steps, args.steps
    config.data.batch_size = args.rows
    start = time.monotonic()
    path = train(config, workdir / "run")
    minutes = (time.monotonic() - start) / 60
    console.print(f"{args.steps} steps on {2 * args.comparisons:,} lessons: {minutes:.1f} minutes")
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/tiny-judge")
    parser.add_argument("--comparisons", type=int, default=3_000)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4, help="of 2,048 tokens, in a step")
    parser.add_argument("--init", default="tiny", help="checkpoint to begin with")
    parser.add_argument("--judge", default="", help="checkpoint of one that is taught already: look at it alone")
    args = parser.parse_args()
    console, workdir = Console(width=100), Path(args.workdir).resolve()
    jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))
    path = args.judge or taught(args, workdir, console)
    engine = load_engine(path, options=EngineOptions(max_rows=32, max_length=768, pages=800))
    judge = EngineJudge(engine, "tiny judge")
    held_out = comparisons(args.held_out, HELD_OUT, 8)
    judged = judge_all(RewardModel(judge, max_new_tokens=128), held_out, console)
    console.print(table(agreement(judged, [each.label for each in held_out]), judge, 0))
    for ruled in (True, False):
        own = [i for i, each in enumerate(held_out) if bool(each.comparison.rubric) == ruled]
        found = agreement([judged[i] for i in own], [held_out[i].label for i in own])
        console.print(f"{'by rubric' if ruled else 'without'}: accuracy {found.accuracy:.3f} of {found.judged}, "
                      f"position bias {found.position_bias:+.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
