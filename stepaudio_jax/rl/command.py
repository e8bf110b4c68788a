"""`stepaudio rl`: train by reinforcement, and choose what is worth training on."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable


def define(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="rl_command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a policy by a config file")
    train.add_argument("--workdir", required=True, help="folder of the run; one that lies there goes on")
    train.add_argument(
        "--allow-change", default="", metavar="KEY,…", help="keys of the config that may differ from the run's so far"
    )
    train.set_defaults(run=_train)
    chosen = commands.add_parser("filter", help="keep the prompts that the policy answers right sometimes")
    chosen.add_argument("--out", required=True, metavar="FOLDER", help="what is found; one that lies there goes on")
    chosen.add_argument("--samples", type=int, default=8, help="replies to each prompt (8)")
    chosen.add_argument("--keep", type=_bounds, default=(3, 6), metavar="LEAST:MOST", help="right replies (3:6)")
    chosen.set_defaults(run=_filter)
    rounds = commands.add_parser("mgrd", help="rounds in which the model learns from its own replies that listen")
    rounds.set_defaults(run=_mgrd)
    cognition = commands.add_parser("self-cognition", help="teach the model that it can hear, by its own replies")
    cognition.set_defaults(run=_self_cognition)
    _define_judge_eval(commands.add_parser("judge-eval", help="how well a judge agrees with labelled preferences"))
    _define_judge_data(commands.add_parser("judge-data", help="labelled comparisons, as a judge learns from them"))
    for each in (rounds, cognition):
        each.add_argument("--workdir", required=True, help="folder of the work; one that lies there goes on")
    for each in (train, chosen, rounds, cognition):
        each.add_argument("--config", required=True, help="a config file; override with --config.name=value")
        each.add_argument("--allow-code", action="store_true", help="rewards may run, confined, what a model wrote")


def _define_judge_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="labelled comparisons: JSON lines, parquet, a data set"
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", help="a checkpoint of ours judges")
    who.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible address, with /v1; key in JUDGE_API_KEY")
    who.add_argument("--replay", metavar="FILE", help="what --record has written, without a judge")
    parser.add_argument("--model", default="default", help="the model's name at the address")
    parser.add_argument(
        "--record", metavar="FILE", help="remember the judge's replies; what is in there is not asked again"
    )
    parser.add_argument("--sound", action="store_true", help="the judge hears clips; else it reads their transcripts")
    parser.add_argument("--sound-root", action="append", default=[], help="where clips that records name lie")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of a reply of the judge (1024)")
    parser.add_argument("--at-once", type=int, default=8, help="questions on the way to an address (8)")
    parser.add_argument("--most-requests", type=int, help="most attempts at an address in all")
    parser.add_argument("--limit", type=int, help="the first so many comparisons")
    parser.add_argument("--out", metavar="FILE", help="figures and every comparison, as JSON")
    parser.set_defaults(run=_judge_eval)


def _define_judge_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled comparisons, as for judge-eval")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder for the data set")
    parser.add_argument("--tokenizer", default="tiny", help="checkpoint whose tokenizer counts tokens (tiny)")
    parser.add_argument("--sound", action="store_true", help="the judge will hear clips; else it reads transcripts")
    parser.add_argument("--sound-root", action="append", default=[], help="where clips that records name lie")
    parser.set_defaults(run=_judge_data)


def _judge_data(args: argparse.Namespace) -> int:
    from stepaudio_jax.rl.reward_model.teaching import run

    return run(args)


def _judge_eval(args: argparse.Namespace) -> int:
    from stepaudio_jax.rl.reward_model.judge_eval import run

    return run(args)


def _bounds(text: str) -> tuple[int, int]:
    least, colon, most = text.partition(":")
    if not (colon and least.isdecimal() and most.isdecimal()):
        raise argparse.ArgumentTypeError(f'expected two numbers such as 3:6, found "{text}"')
    return int(least), int(most)


def _train(args: argparse.Namespace) -> int:
    from stepaudio_jax.parallel import distributed
    from stepaudio_jax.rl.loop import train
    from stepaudio_jax.rl.reward_model.build import judged_by_all, make_reward_model
    from stepaudio_jax.rl.reward_model.scoring import MixedScore
    from stepaudio_jax.rl.rewards import RewardRunner
    from stepaudio_jax.rl.scoring import Score, score
    from stepaudio_jax.training import Stopped, read_config

    config = read_config(args.config, args.rest)
    allowed = [key for key in args.allow_change.split(",") if key]
    distributed.start()
    evaluate = _look_at(config)
    try:
        with RewardRunner(allow_code=args.allow_code) as runner:
            scoring: Score = functools.partial(score, runner)
            if "reward_model" in config:
                model = make_reward_model(config, args.workdir)
                scoring = MixedScore(runner, model, by_all=judged_by_all(config))
            path = train(config, args.workdir, scoring, evaluate=evaluate, allow_change=allowed)
    except Stopped as stopped:
        return stopped.exit_code
    print(f"The checkpoint is in {path}. Its curves: {args.workdir}/report.html")
    return 0


def _filter(args: argparse.Namespace) -> int:
    from stepaudio_jax.inference.session import load_engine
    from stepaudio_jax.rl.ask import Asking
    from stepaudio_jax.rl.filter import filter_prompts
    from stepaudio_jax.rl.prompts import sources_of
    from stepaudio_jax.rl.rewards import RewardRunner
    from stepaudio_jax.rl.scoring import score
    from stepaudio_jax.rl.stage import engine_options, sampling_of
    from stepaudio_jax.training import read_config

    config = read_config(args.config, args.rest)
    if not config.init:
        raise ValueError("config.init: the policy to ask is needed; name a checkpoint")
    sources = sources_of(config)
    engine = load_engine(config.init, options=engine_options(config))
    with RewardRunner(allow_code=args.allow_code) as runner:
        asking = Asking(args.samples, sampling_of(config), config.seed, str(config.init))
        scoring = functools.partial(score, runner)
        counts = filter_prompts(engine, sources, scoring, args.out, asking, keep=args.keep)
    left = sum(count.within(args.keep) for count in counts)
    print(f"{left:,} of {len(counts):,} prompts are kept; to train on: --config.prompts.kept={args.out}/kept.json")
    return 0


def _mgrd(args: argparse.Namespace) -> int:
    from stepaudio_jax.rl.mgrd import mgrd
    from stepaudio_jax.rl.rewards import RewardRunner
    from stepaudio_jax.rl.scoring import score
    from stepaudio_jax.training import Stopped, read_config

    config = read_config(args.config, args.rest)
    evaluate = _examine_listening if "miniature" in config.prompts else None
    try:
        with RewardRunner(allow_code=args.allow_code) as runner:
            path = mgrd(config, args.workdir, functools.partial(score, runner), evaluate=evaluate)
    except Stopped as stopped:
        return stopped.exit_code
    print(f"The last round's checkpoint is {path}. What happened: {args.workdir}/report.html")
    return 0


def _self_cognition(args: argparse.Namespace) -> int:
    from stepaudio_jax.rl.self_cognition import self_cognition
    from stepaudio_jax.training import Stopped, read_config

    try:
        path = self_cognition(read_config(args.config, args.rest), args.workdir)
    except Stopped as stopped:
        return stopped.exit_code
    print(f"The checkpoint is {path}. What happened: {args.workdir}/report.html")
    return 0


def _examine_listening(engine) -> dict[str, float]:
    """Of held-out scenes of the small world: with captions that are right, or wrong."""
    from stepaudio_jax.evals.miniature import examine_listening

    return examine_listening(engine.generate, per_kind=12)


def _look_at(config) -> Callable[..., dict[str, float]] | None:
    """What a run looks at between updates: the small world, where its prompts come from there."""
    from stepaudio_jax.evals.dialogues import examine_dialogues

    looks = [_examine] if "miniature" in config.prompts else []
    if "dialogues" in config.prompts:
        own = config.prompts.dialogues
        looks.append(lambda engine: examine_dialogues(engine.generate, 48, kinds=own.kinds, max_events=own.max_events))
    return (lambda engine: dict(item for look in looks for item in look(engine).items())) if looks else None


def _examine(engine) -> dict[str, float]:
    """Accuracy on held-out scenes of the small world."""
    from stepaudio_jax.evals.evaluate import evaluate
    from stepaudio_jax.evals.miniature import held_out_items, score_answer

    result = evaluate(engine.generate, held_out_items(12, seed=1), score_answer)
    return {"eval_accuracy": result.overall.mean}
