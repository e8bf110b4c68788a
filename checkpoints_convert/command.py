"""`stepaudio convert`, also `python -m checkpoints_convert`.

convert from-hf SRC DST            released weights (a folder or a hub id) to a checkpoint
convert from-hf --decoder … --encoder … DST     a new model from public base weights
convert to-hf SRC DST              and back; adapters are merged into their base
convert to-peft SRC DST            adapters as a PEFT folder
convert from-peft SRC DST --base … and back
convert verify A [B]               the same tensors? or what the manifest says?
convert inspect X                  a table of what is in it
convert synth DST                  random weights in the released layout

The heavy imports wait until a command runs: `stepaudio --help` is quick.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

MOST_PROBLEMS = 40
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Bytes of "5GB", "500MB", "1GiB" or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.strip().upper())
    if not match or not (number := int(float(match[1]) * UNITS[match[2] or ""])):
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB, 500MB or 1GiB, found {text!r}")
    return number


def define(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="conversion", required=True, metavar="WHAT")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=lambda args: _reported(run, args))
        return made

    one = add("from-hf", _from_hf, "Hugging Face safetensors to a checkpoint")
    one.add_argument("folders", nargs="+", metavar="[SRC] DST", help="a folder or hub id, and the folder to write")
    one.add_argument("--revision", help="branch, tag or commit of a hub id")
    one.add_argument("--decoder", help="instead of SRC: a Qwen2.5 folder or hub id to start a new model from")
    one.add_argument("--encoder", help="with --decoder: a Qwen2-Audio folder or hub id")
    one.add_argument("--tokenizer", help="take the tokenizer files of this folder")
    one.add_argument("--seed", type=int, default=0, help="of a new model's adaptor (default 0)")
    two = add("to-hf", _to_hf, "a checkpoint to Hugging Face safetensors")
    two.add_argument("src")
    two.add_argument("dst")
    two.add_argument("--decoder-only", action="store_true", help="a plain Qwen2 folder, without the encoder")
    three = add("verify", _verify, "compare two checkpoints of either kind, or one with its manifest; 1 if they differ")
    three.add_argument("a")
    three.add_argument("b", nargs="?")
    three.add_argument("--rtol", type=float, default=2.0**-8, help="where types differ (default 2⁻⁸, bf16's rounding)")
    three.add_argument("--atol", type=float, default=0.0, help="where types differ (default 0)")
    four = add(
        "inspect", _inspect, "a table of a checkpoint of either kind, or of a preset (33b, 8b), without loading it"
    )
    four.add_argument("x")
    five = add("synth", _synth, "random weights in the exact released layout")
    five.add_argument("dst")
    five.add_argument("--preset", default="tiny", help="33b, 8b or tiny (the default)")
    five.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change the preset: text_config.num_hidden_layers=2; repeatable",
    )
    five.add_argument("--shape", default="nested", help="of config.json: nested (the default), flat or parts")
    five.add_argument("--seed", type=int, default=0)
    six = add("to-peft", _to_peft, "a checkpoint of adapters to a PEFT folder")
    six.add_argument("src")
    six.add_argument("dst")
    six.add_argument("--base-model", help="hub id or folder of the base, for adapter_config.json")
    seven = add("from-peft", _from_peft, "a PEFT folder to a checkpoint of adapters")
    seven.add_argument("src")
    seven.add_argument("dst")
    seven.add_argument("--base", required=True, help="the checkpoint that the adapters belong to")
    for command, choices in ((one, ("keep", "bf16", "f32")), (two, ("keep", "bf16", "f32")), (five, ("bf16", "f32"))):
        command.add_argument("--dtype", choices=choices, default=choices[0], help=f"to store (default {choices[0]})")
        command.add_argument("--overwrite", action="store_true", help="replace DST if it exists, once the new is whole")
    for command in (two, five):
        command.add_argument("--max-shard-size", type=size, default=size("5GB"), help="of a shard (default 5GB)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 where checkpoints differ, or 2 after naming every mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints_convert", description="Hugging Face ⇄ checkpoint")
    define(parser)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _reported(run, args: argparse.Namespace) -> int:
    """Runs a command; several problems at once get a line each."""
    from checkpoints_convert.sources import ConversionError

    show = Console(stderr=True, highlight=False, markup=False)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: show.print(f"warning: {message}", soft_wrap=True)
            return run(args, show) or 0
    except ConversionError as error:
        if len(error.problems) == 1:
            raise
        shown = list(error.problems[:MOST_PROBLEMS])
        if len(shown) < len(error.problems):
            shown.append(f"… and {len(error.problems) - len(shown)} more")
        lines = "".join(f"\n  {problem}" for problem in shown)
        print(f"stepaudio convert {args.conversion}: {len(error.problems)} problems:{lines}", file=sys.stderr)
        return 2


def _from_hf(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.from_hf import from_hf
    from checkpoints_convert.initialise import from_parts

    *src, dst = args.folders
    options = {"dtype": args.dtype, "tokenizer": args.tokenizer, "overwrite": args.overwrite, "show": show}
    if args.decoder or args.encoder:
        if src or not (args.decoder and args.encoder):
            raise ValueError("expected either SRC DST, or --decoder … --encoder … DST")
        from_parts(args.decoder, args.encoder, dst, seed=args.seed, **options)
    elif len(src) != 1:
        raise ValueError(f"expected SRC DST, found {' '.join(args.folders)}")
    else:
        from_hf(src[0], dst, revision=args.revision, **options)
    show.print(f"{dst} is whole. Ask it: stepaudio ask --checkpoint={dst} FILE QUESTION")


def _to_hf(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.to_hf import to_hf

    to_hf(
        args.src,
        args.dst,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        decoder_only=args.decoder_only,
        overwrite=args.overwrite,
        show=show,
    )
    show.print(f"{args.dst} is whole.")


def _to_peft(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.peft import to_peft

    to_peft(args.src, args.dst, base_model=args.base_model)
    show.print(f"{args.dst} is whole.")


def _from_peft(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.peft import from_peft

    from_peft(args.src, args.dst, base=args.base)
    show.print(f"{args.dst} is whole. Ask it: stepaudio ask --checkpoint={args.dst} FILE QUESTION")


def _verify(args: argparse.Namespace, show: Console) -> int:
    from rich.markup import escape
    from rich.table import Table

    from checkpoints_convert.verify import check_manifest, compare
    from stepaudio_jax.inputs import one_line

    if args.b is None:
        differences = check_manifest(args.a, show=show)
    else:
        differences = compare(args.a, args.b, rtol=args.rtol, atol=args.atol, show=show)
    if not differences:
        print(f"{args.a}: every tensor is as its manifest says" if args.b is None else "every tensor is the same")
        return 0
    table = Table("tensor", "difference", "largest", title=f"{len(differences)} tensors differ")
    for name, what, largest in differences:
        table.add_row(escape(one_line(name)), what, "" if largest is None else f"{largest:.3g}")
    Console(highlight=False).print(table)
    return 1


def _inspect(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.inspection import report

    Console(highlight=False).print(report(args.x))


def _synth(args: argparse.Namespace, show: Console) -> None:
    from checkpoints_convert.synth import synth

    synth(
        args.dst,
        preset=args.preset,
        overrides=args.set,
        shape=args.shape,
        dtype=args.dtype,
        seed=args.seed,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
        show=show,
    )
