"""`stepaudio rl`: train by reinforcement, and choose what is worth training on."""

from __future__ import annotations

import argparse
import functools


def define(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="rl_command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a policy by a config file")
    train.add_argument("--workdir", required=True, help="folder of the run; one that lies there goes on")
    train.add_argument("--config", required=True, help="a config file; override with --config.name=value")
    train.add_argument(
        "--allow-change", default="", metavar="KEY,…", help="keys of the config that may differ from the run's so far"
    )
    train.add_argument("--allow-code", action="store_true", help="rewards may run, confined, programs a model wrote")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from stepaudio_jax.parallel import distributed
    from stepaudio_jax.rl.loop import train
    from stepaudio_jax.rl.rewards import RewardRunner
    from stepaudio_jax.rl.scoring import score
    from stepaudio_jax.training import Stopped, read_config

    config = read_config(args.config, args.rest)
    allowed = [key for key in args.allow_change.split(",") if key]
    distributed.start()
    evaluate = _examine if "miniature" in config.prompts else None
    try:
        with RewardRunner(allow_code=args.allow_code) as runner:
            scoring = functools.partial(score, runner)
            path = train(config, args.workdir, scoring, evaluate=evaluate, allow_change=allowed)
    except Stopped as stopped:
        return stopped.exit_code
    print(f"The checkpoint is in {path}. Its curves: {args.workdir}/report.html")
    return 0


def _examine(engine) -> dict[str, float]:
    """Accuracy on held-out scenes of the small world."""
    from stepaudio_jax.evals.evaluate import evaluate
    from stepaudio_jax.evals.miniature import held_out_items, score_answer

    result = evaluate(engine.generate, held_out_items(12, seed=1), score_answer)
    return {"eval_accuracy": result.overall.mean}
