"""`stepaudio rl judge-data`: labelled comparisons as the dialogues that a judge learns from, each in both orders.

Supervised training takes the data set as it is (configs/reward_model_33b.py). Reinforcement on the verdicts'
correctness takes it as prompts: reward "verdict", truth "level".
"""

from __future__ import annotations

import argparse
import dataclasses
import re

from etils import epath
from rich.console import Console

from stepaudio_jax import checkpoints
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.rl.reward_model.labelled import Labelled, read_labelled
from stepaudio_jax.rl.reward_model.templates import comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, SLOT, Level
from stepaudio_jax.text import assistant


def run(args: argparse.Namespace) -> int:
    console, out = Console(), epath.Path(args.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out: expected a new folder, found {out} with something in it")
    labelled, refused = read_labelled(args.files, Sounds(args.sound_root))
    samples: list[Sample] = []
    for each in labelled:
        try:
            samples += lessons(each, sound=args.sound)
        except ValueError as error:
            refused.append(RecordError(f"{each.where}: {error}"))
    for error in refused[:10]:
        console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
    if not samples:
        raise ValueError(
            f"{', '.join(args.files)}: expected labelled comparisons, found none of {len(refused)} records"
        )
    write_samples(out, samples, Recipe(str(checkpoints.locate(args.tokenizer))))
    made = f"{len(samples):,} dialogues of {len(samples) // 2:,} comparisons, {len(refused):,} records left out: {out}"
    console.print(made, markup=False, highlight=False, soft_wrap=True)
    return 0


def lessons(labelled: Labelled, *, sound: bool = False) -> list[Sample]:
    """The comparison in both orders, so that a judge cannot learn to prefer a place: the dialogue that asks it, and the
    reply that critique and level make. Columns: level, of this order.

    Raises:
      ValueError: sound that the judge cannot be given.
    """
    asked = labelled.comparison
    orders = (
        (asked.reply, asked.reference, labelled.level, labelled.critique),
        (asked.reference, asked.reply, exchanged(labelled.level), _exchanged_critique(labelled.critique)),
    )
    made = []
    for first, second, level, critique in orders:
        question = comparison(asked.history, first, second, asked.rubric, sound=sound)
        said = assistant(f"{critique}\n{SLOT} {level}" if critique else f"{SLOT} {level}")
        columns = {"level": level}
        made.append(Sample(dataclasses.replace(question, turns=(*question.turns, said), extra=columns)))
    return made


def exchanged(level: Level) -> Level:
    return LEVELS[len(LEVELS) - 1 - LEVELS.index(level)]


def _exchanged_critique(critique: str) -> str:
    """With "reply 1" and "reply 2" the other way round. Lines that begin with one of them stay in that order, so that a
    judge need not guess which of the two it has to begin with."""
    swapped = re.sub(r"\b([Rr]eply) ([12])\b", lambda found: f"{found[1]} {'21'[int(found[2]) - 1]}", critique)
    lines = swapped.split("\n")
    of_one = [i for i, line in enumerate(lines) if line.startswith(("Reply 1", "Reply 2"))]
    for i, line in zip(of_one, sorted((lines[i] for i in of_one), key=lambda line: line[:7]), strict=True):
        lines[i] = line
    return "\n".join(lines)
