"""`stepaudio rl judge-eval`: how well a judge agrees with labelled preferences."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import track
from rich.table import Table

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.data.samples import RecordError
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.judges import EndpointOptions, Judge, make_judge
from stepaudio_jax.rl.reward_model.agreement import Agreement, agreement
from stepaudio_jax.rl.reward_model.compare import Judged, RewardModel
from stepaudio_jax.rl.reward_model.labelled import Labelled, read_labelled
from stepaudio_jax.rl.reward_model.templates import comparison

AT_ONCE = 32
"""Comparisons between two looks at the progress."""


def run(args: argparse.Namespace) -> int:
    console = Console()
    labelled, refused = read_labelled(args.files, Sounds(args.sound_root))
    labelled, mute = _that_can_be_shown(labelled, args.sound)
    refused += mute
    for error in refused[:10]:
        console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
    labelled = labelled[: args.limit]
    if not labelled:
        raise ValueError(
            f"{', '.join(args.files)}: expected labelled comparisons, found none of {len(refused)} records"
        )
    options = EndpointOptions(at_once=args.at_once, most_requests=args.most_requests)
    judge = make_judge(
        checkpoint=args.checkpoint, url=args.endpoint, replay=args.replay, model=args.model, record=args.record,
        options=options,
    )  # fmt: skip
    model = RewardModel(judge, sound=args.sound, max_new_tokens=args.max_new_tokens)
    judged = judge_all(model, labelled, console)
    found = agreement(judged, [each.label for each in labelled])
    console.print(table(found, judge, len(refused)))
    if args.out:
        rows = [
            {"where": one.where, "label": one.label} | dataclasses.asdict(other)
            for one, other in zip(labelled, judged, strict=True)
        ]
        whole = {"judge": judge.name, "agreement": dataclasses.asdict(found), "comparisons": rows}
        write_whole(epath.Path(args.out), (json.dumps(_without_nan(whole), indent=1, allow_nan=False) + "\n").encode())
    return 0


def _that_can_be_shown(labelled: Sequence[Labelled], sound: bool) -> tuple[list[Labelled], list[RecordError]]:
    """Those whose dialogue the judge can be given, before any is asked; why not the others."""
    found, refused = [], []
    for each in labelled:
        try:
            comparison(each.comparison.history, "", "", "", sound=sound)
            found.append(each)
        except ValueError as error:
            refused.append(RecordError(f"{each.where}: {error}"))
    return found, refused


def _without_nan(value: Any) -> Any:
    """JSON has no such number: null."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def judge_all(model: RewardModel, labelled: Sequence[Labelled], console: Console) -> list[Judged]:
    parts = [labelled[at : at + AT_ONCE] for at in range(0, len(labelled), AT_ONCE)]
    judged: list[Judged] = []
    for part in track(parts, "judging", console=console, disable=not console.is_terminal):
        judged += model([each.comparison for each in part])
    return judged


def table(found: Agreement, judge: Judge, refused: int) -> Table:
    made = Table("", judge.name, title="agreement with labels")
    for name, value in (
        ("comparisons judged", f"{found.judged:,}"),
        ("without a verdict", f"{found.without:,}"),
        ("records left out", f"{refused:,}"),
        ("accuracy", f"{found.accuracy:.3f}"),
        ("Cohen's kappa", f"{found.kappa:.3f}"),
        ("position bias", f"{found.position_bias:+.3f}"),
        ("contradictions", f"{found.contradictions:.3f}"),
        ("ties", f"{found.ties:.3f}"),
        *((f"labels where it says {level}", f"{mean:+.2f} ({n:,})") for level, (n, mean) in found.calibration.items()),
        *((f"error: {kind}", f"{n:,}") for kind, n in sorted(judge.counters.errors.items())),
        ("tokens read, written", f"{judge.counters.prompt_tokens:,}, {judge.counters.reply_tokens:,}"),
    ):
        made.add_row(name, value)
    return made
