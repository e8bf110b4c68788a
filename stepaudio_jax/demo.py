"""The demonstration: three fresh scenes, what the tiny model thinks it hears, and the truth beside it."""

from __future__ import annotations

import time

import numpy as np
import soundfile
from etils import epath
from rich.console import Console
from rich.table import Table

from stepaudio_jax import miniature
from stepaudio_jax.audio.lengths import SAMPLE_RATE
from stepaudio_jax.inference import StepAudio

KINDS = ("count", "timbre", "order", "arithmetic", "tempo", "direction", "loudness", "pitch")


def run(folder: str, seed: int | None) -> int:
    """Writes the scenes as wav files, asks, and prints a table. Returns the exit code: 0."""
    start = time.perf_counter()
    console = Console(highlight=False)
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    rng = np.random.default_rng(seed)
    path = epath.Path(folder) / f"seed-{seed}"  # a folder of its own: two demos at once do not meet
    path.mkdir(parents=True, exist_ok=True)
    console.print(f"Three scenes made just now (seed {seed}), heard by the model that comes with the package.\n")
    model = StepAudio.load("tiny")

    table = Table(show_lines=True)
    for column in ("file and question", "the model thinks", "answers", "truth"):
        table.add_column(column, overflow="fold")
    right = 0
    for number, kind in enumerate(rng.permutation(KINDS)[:3], 1):
        question = miniature.make_question(rng, str(kind))
        file = path / f"scene-{number}.wav"
        soundfile.write(str(file), question.conversation.audio[0].samples, SAMPLE_RATE)
        asked = question.prompt.turns[-1].text
        with console.status(f"listening to {file}"):
            reply = model.ask([file], asked)
        correct = miniature.is_correct(reply.answer, question.answer)
        right += correct
        events = question.scene.events if question.scene else ()
        heard = "\n".join(f"{place} {event.description}" for place, event in enumerate(events, 1))
        table.add_row(
            f"{file}\n[bold]{asked}[/bold]",
            f"[dim]{reply.think}[/dim]",
            f"[{'green' if correct else 'red'}]{reply.answer} {'✓' if correct else '✗'}[/]",
            f"{question.answer}\n[dim]{heard}[/dim]",
        )
    console.print(table)
    console.print(f"{right} of 3 right, in {time.perf_counter() - start:.0f} s.\n")
    console.print(
        "The tiny model knows only this small world of tones, chirps, noise, clicks and vowels. Ask it yourself:\n"
        f'  stepaudio ask {path / "scene-1.wav"} "How many tones do you hear?"\n'
        "and, with a checkpoint of the real model, about any recording of yours:\n"
        '  stepaudio ask --checkpoint=FOLDER your.wav "What is being said, and how does the speaker feel?"\n'
        "(in a shell without the environment on its path: .venv/bin/stepaudio)",
        markup=False,
    )
    return 0
