"""The `stepaudio` command.

stepaudio demo                        three fresh scenes, heard and answered by the tiny model
stepaudio ask FILE… QUESTION          ask about your own sound
stepaudio data check FILES            counts, lengths, sounds and every bad record of a data set; data build stores it
stepaudio train --config=… --workdir=…
stepaudio eval                        examine a checkpoint on held-out scenes
stepaudio plan --config=… --topology=v5p:4x4x4
stepaudio serve --checkpoint=… --port=8000   a checkpoint behind OpenAI's protocol
stepaudio convert from-hf SRC DST     bring released weights in; to-hf, verify, inspect, synth
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from stepaudio_jax.inference import WindowReply

SAMPLING_FLAGS: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, "most tokens to write"),
    "think_budget": (int, "close the think block after this many tokens"),
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "keep the k likeliest tokens; 0 keeps all"),
    "top_p": (float, "keep the likeliest tokens that together reach this probability"),
    "min_p": (float, "keep tokens at least this share as likely as the likeliest"),
    "repetition_penalty": (float, "1 is none"),
    "seed": (int, "equal seeds give equal replies"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, or 2 after a one-line message for a mistake in the input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(argv)
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (ValueError, OSError) as error:  # every mistake in the input is one of these, with its cause as message
        print(f"stepaudio {argv[0]}: {_one_line(error)}", file=sys.stderr)
        return 2


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stepaudio", description="Step-Audio-R1 in JAX")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (define, help_text) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if argv[:1] == [name]:  # the others' imports would take seconds
            define(command)
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in ("train", "plan", "rl"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    args.rest = rest
    return args


def _ask_parser(parser: argparse.ArgumentParser):
    parser.add_argument("sounds_and_question", nargs="+", metavar="FILE… QUESTION")
    parser.add_argument("--checkpoint", default="tiny", help="a checkpoint folder, or tiny (the default)")
    for name, (kind, text) in SAMPLING_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)
    parser.add_argument("--stop", action="append", default=None, help="end where this string appears")
    parser.add_argument(
        "--yarn-factor",
        type=float,
        metavar="FACTOR",
        help="so many times the positions, by YaRN, no part of the release",
    )
    parser.add_argument(
        "--long-audio",
        choices=("refuse", "split"),
        default="refuse",
        help="of sound that does not fit: refuse it (the default), or hear it in windows and merge the answers",
    )
    parser.add_argument("--window-seconds", type=float, help="most seconds of a window; by default what fits")
    parser.add_argument("--overlap-seconds", type=float, help="of neighbouring windows (default 30)")
    parser.add_argument(
        "--merge", choices=("ask", "join"), help="ask for one answer (the default), or join them: for transcriptions"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=_ask)


def _ask(args: argparse.Namespace) -> int:
    *files, question = args.sounds_and_question
    from pathlib import Path

    if not files and Path(question).exists():
        raise ValueError(f'no question: expected FILE… QUESTION, found only the file "{question}"')
    sampling = {name: value for name in SAMPLING_FLAGS if (value := getattr(args, name)) is not None}
    if args.stop:
        sampling["stop"] = tuple(args.stop)

    from stepaudio_jax.audio import collect_warnings
    from stepaudio_jax.checkpoints import read_config
    from stepaudio_jax.inference import AudioProgress, Finished, SoundSplit, StepAudio, TextDelta, WindowFinished
    from stepaudio_jax.inference.audio_input import load_sounds

    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True)
    positions = read_config(args.checkpoint, yarn_factor=args.yarn_factor).decoder.max_position_embeddings
    with collect_warnings() as warnings:  # bad files are refused before any model is loaded
        clips = load_sounds(files, positions, split=args.long_audio == "split")
    for warning in warnings:
        errors.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    model = StepAudio.load(args.checkpoint, yarn_factor=args.yarn_factor)
    start = time.perf_counter()
    split = {name: getattr(args, name) for name in ("long_audio", "window_seconds", "overlap_seconds", "merge")}
    request = model.request(clips, question, **split, **sampling)
    part = None
    columns = (TextColumn("hearing"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("hearing", total=None, visible=False)
        for event in model.generate([request]):
            if isinstance(event, AudioProgress):
                progress.update(task, completed=event.done, total=event.total, visible=event.total > 1)
                if event.done == event.total:
                    progress.stop()
            elif isinstance(event, SoundSplit):
                progress.console.print(_windows(event.windows), style="dim")
            elif isinstance(event, WindowFinished):
                progress.console.print(f"window {event.number}: {_how(event.reply)}", style="dim")
            elif isinstance(event, TextDelta) and not args.json:
                if part == "think" != event.part:
                    console.print("\n")
                part = event.part
                console.print(event.text, end="", style="dim" if part == "think" else "bold", markup=False)
            elif isinstance(event, Finished):
                done = event.completion
    if not args.json:
        console.print()
        if done.finish_reason == "length" and done.token_ids:
            errors.print(f"(stopped after {len(done.token_ids)} tokens)", style="yellow")
        for name, replies in (("the answer about", done.windows), ("what was merged of", done.merges)):
            for reply in replies:
                if reply.completion.finish_reason == "length":
                    errors.print(f"({name} {_span(reply.start, reply.stop)} was {_how(reply)})", style="yellow")
        if args.merge != "join" and not done.token_ids:
            errors.print("(the answers did not fit into a prompt, nor could be shortened: joined)", style="yellow")
        return 0
    usage = dataclasses.asdict(done.usage)
    report = {"think": done.think, "answer": done.answer} | usage
    if done.windows:
        report |= {"windows": [_report(r) for r in done.windows], "merges": [_report(r) for r in done.merges]}
    if warnings:
        report["warnings"] = warnings
    print(json.dumps(report | {"stop_reason": done.stop_reason, "seconds": round(time.perf_counter() - start, 3)}))
    return 0


def _windows(windows: Sequence[tuple[float, float]]) -> str:
    spans = ", ".join(_span(*window) for window in windows)
    return f"too long for one prompt; heard in {len(windows)} windows: {spans}"


def _span(start: float, stop: float) -> str:
    from stepaudio_jax.inference.merging import clock

    return f"{clock(start)} to {clock(stop)}"


def _how(reply: WindowReply) -> str:
    tokens = len(reply.completion.token_ids)
    return f"cut off after {tokens} tokens" if reply.completion.finish_reason == "length" else f"{tokens} tokens"


def _report(reply: WindowReply) -> dict[str, Any]:
    done = reply.completion
    text = {"think": done.think, "answer": done.answer, "stop_reason": done.stop_reason}
    return {"start": reply.start, "stop": reply.stop} | text


def _demo_parser(parser: argparse.ArgumentParser):
    parser.add_argument("--folder", default="demo-scenes", help="the scenes are written below it (default demo-scenes)")
    parser.add_argument("--seed", type=int, default=None, help="the same scenes again; by default fresh ones")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from stepaudio_jax.demo import run

    return run(args.folder, args.seed)


def _train_parser(parser: argparse.ArgumentParser):
    parser.add_argument("--workdir", required=True, help="folder of the run; one that lies there goes on")
    parser.add_argument("--config", required=True, help="a config file; override with --config.name=value")
    parser.add_argument(
        "--allow-change", default="", metavar="KEY,…", help="keys of the config that may differ from the run's so far"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps into workdir/profile")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from stepaudio_jax.evals.miniature import examine
    from stepaudio_jax.parallel import distributed
    from stepaudio_jax.training import Stopped, parse_window, read_config, train

    config = read_config(args.config, args.rest)
    allowed = [key for key in args.allow_change.split(",") if key]
    window = parse_window(args.profile) if args.profile else None
    distributed.start()
    try:
        path = train(config, args.workdir, evaluate=examine, allow_change=allowed, profile=window)
    except Stopped as stopped:
        return stopped.exit_code
    print(f"The checkpoint is in {path}. Ask it: stepaudio ask --checkpoint={path} FILE QUESTION")
    print(f"Its curves: {args.workdir}/report.html. The checkpoints on the way: {args.workdir}/checkpoints")
    return 0


def _eval_parser(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", default="tiny", help="a checkpoint folder, or tiny (the default)")
    parser.add_argument("--per-kind", type=int, default=100, help="scenes of each kind of question (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="which held-out scenes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    from stepaudio_jax.evals.miniature import report

    report(args.checkpoint, args.per_kind, args.seed, args.batch_size, Console(highlight=False))
    return 0


def _plan_parser(parser: argparse.ArgumentParser):
    from stepaudio_jax.plan.command import define

    define(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    import os

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: a TPU here stays free for who uses it
    from stepaudio_jax.plan.command import run

    return run(args.config, args.rest, args)


def _serve_parser(parser: argparse.ArgumentParser):
    try:
        from stepaudio_jax.serving.command import define
    except ImportError as error:
        raise ValueError(f'{error.name} is not installed: pip install "stepaudio-jax[serve]" brings it') from None
    define(parser)


def _data_parser(parser: argparse.ArgumentParser):
    from stepaudio_jax.data import build, check

    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    check.define(commands.add_parser("check", help="what is in a data set, and which records cannot be used"))
    build.define(commands.add_parser("build", help="store it for training, its sound inside; goes on where it stopped"))
    small = commands.add_parser("miniature", help="write scenes of the small world as a data set to try")
    small.add_argument("folder")
    small.add_argument("--records", type=int, default=1000, help="how many (default 1000)")
    small.add_argument("--seed", type=int, default=0)
    small.add_argument("--text-share", type=float, default=0.1, help="of the records, without sound (default 0.1)")
    small.add_argument("--preferences", action="store_true", help="each with a worse reply, for DPO")
    small.set_defaults(run=_miniature)


def _miniature(args: argparse.Namespace) -> int:
    from stepaudio_jax.miniature import export_dataset

    path = export_dataset(
        args.folder, records=args.records, seed=args.seed, preferences=args.preferences, text_share=args.text_share
    )
    print(f"{args.records} records are in {path}. Next: stepaudio data build {path} --audio={args.folder} --out=FOLDER")
    return 0


def _rl_parser(parser: argparse.ArgumentParser):
    from stepaudio_jax.rl.command import define

    define(parser)


def _convert_parser(parser: argparse.ArgumentParser):
    from checkpoints_convert.command import define

    define(parser)


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "ask": (_ask_parser, "ask a question about sound files"),
    "demo": (_demo_parser, "render three scenes and let the tiny model answer about them"),
    "data": (_data_parser, "check a data set, and store it for training"),
    "train": (_train_parser, "train by a config file"),
    "eval": (_eval_parser, "examine a checkpoint on held-out scenes"),
    "rl": (_rl_parser, "reinforcement: train, filter prompts, MGRD, self-cognition"),
    "plan": (_plan_parser, "does a config fit a pod, what would it cost, what limits it; without a TPU"),
    "serve": (_serve_parser, "a checkpoint behind OpenAI's protocol"),
    "convert": (_convert_parser, "Hugging Face safetensors to a checkpoint and back; verify, inspect, synth"),
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
