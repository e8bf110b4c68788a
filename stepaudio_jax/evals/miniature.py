"""The tiny model's examination: held-out scenes, the same with the sound silenced, and what its reasoning heard."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stepaudio_jax import miniature, models
from stepaudio_jax.evals.evaluate import Item, Result, Score, evaluate
from stepaudio_jax.inference import Completion, Engine, EngineOptions, Request, SamplingParams, StepAudio
from stepaudio_jax.text import Tokenizer

HELD_OUT = 1_000_000_007
"""First part of the seeds of held-out scenes; training draws from seeds (run seed, group)."""

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=160)


def held_out_items(per_kind: int, *, seed: int = 0, text: bool = False) -> list[Item]:
    """So many fresh questions of every kind, the same for the same seed; `text` for the kinds without sound."""
    items = []
    for kind in miniature.TEXT_KINDS if text else miniature.KINDS:
        for index in range(per_kind):
            rng = np.random.default_rng((HELD_OUT, seed, index, *kind.encode()))
            make = miniature.make_text_question if text else miniature.make_question
            question = make(rng, kind)
            items.append(Item(Request(question.prompt, GREEDY, id=f"{kind}-{seed}-{index}"), question, kind))
    return items


def captioned_items(per_kind: int, *, contradicts: bool, seed: int = 0, max_events: int = 3) -> list[Item]:
    """Fresh questions with a caption of their sound, right or wrong, of every kind that can have one."""
    items = []
    for kind in (kind for kind in miniature.KINDS if kind != "dialogue"):
        for index in range(per_kind):
            rng = np.random.default_rng((HELD_OUT, seed, index, contradicts, *kind.encode()))
            question = miniature.make_captioned(rng, kind, contradicts=contradicts, max_events=max_events)
            items.append(Item(Request(question.prompt, GREEDY, id=f"{kind}-{contradicts}-{index}"), question, kind))
    return items


def examine_listening(generate: Callable, *, per_kind: int = 12) -> dict[str, float]:
    """Accuracy where the caption is right and where it contradicts the sound; and of the latter's replies the shares
    that answer as the caption would, and whose reasoning lists what was heard."""
    right, wrong = (
        evaluate(generate, captioned_items(per_kind, contradicts=each, seed=1), score_answer) for each in (False, True)
    )
    answers = wrong.answers
    misled = sum(miniature.is_correct(done.answer, item.truth.misled) for item, done, _ in answers) / len(answers)
    listed = sum(bool(miniature.parse_events(done.think)) for _, done, _ in answers) / len(answers)
    return {
        "accuracy, caption right": right.overall.mean,
        "accuracy, caption wrong": wrong.overall.mean,
        "misled by the caption": misled,
        "reasons from the sound": listed,
    }


def silenced(items: list[Item]) -> list[Item]:
    """The same questions with every sample of their sound set to zero."""
    return [
        dataclasses.replace(
            item, request=dataclasses.replace(item.request, conversation=miniature.silenced(item.truth).prompt)
        )
        for item in items
    ]


def score_answer(completion: Completion, question: miniature.Question) -> float:
    """1 if the answer is right and the think block was closed, else 0."""
    return float(completion.complete and miniature.is_correct(completion.answer, question.answer))


def event_scores(result: Result) -> tuple[float, float]:
    """Shares of events heard right over all reasoning traces: by kind and order, and in every word."""
    scores = [miniature.score_events(done.think, item.truth.scene) for item, done, _ in result.answers]
    total = sum(score.total for score in scores)
    return sum(score.kinds for score in scores) / total, sum(score.details for score in scores) / total


def majority_rates(items: list[Item]) -> dict[str, float]:
    """For each kind, how often the commonest answer is right."""
    answers: dict[str, collections.Counter] = {}
    for item in items:
        answers.setdefault(item.group, collections.Counter())[item.truth.answer] += 1
    return {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}


@dataclasses.dataclass(frozen=True)
class Control:
    """One kind with the sound silenced: its score, the majority answer's rate, and how many standard errors apart."""

    score: Score
    majority: float

    @property
    def standard_errors(self) -> float:
        return (self.score.mean - self.majority) / (self.majority * (1 - self.majority) / self.score.n) ** 0.5


def controls(result: Result) -> dict[str, Control]:
    """Each kind of a silenced run against its majority rate."""
    rates = majority_rates([item for item, _, _ in result.answers])
    return {kind: Control(score, rates[kind]) for kind, score in result.groups.items()}


def control_table(result: Result) -> Table:
    table = Table(title="the same questions, silenced")
    for column in ("kind", "n", "accuracy", "majority", "standard errors apart"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, control in controls(result).items():
        table.add_row(
            kind,
            str(control.score.n),
            f"{control.score.mean:.3f}",
            f"{control.majority:.3f}",
            f"{control.standard_errors:+.1f}",
        )
    return table


def examine(model: models.StepAudio, tokenizer: Tokenizer, *, per_kind: int = 12) -> dict[str, float]:
    """A quick look at a model in training: accuracy overall, and events heard right."""
    engine = Engine(model, tokenizer)
    result = evaluate(engine.generate, held_out_items(per_kind, seed=1), score_answer)
    kinds, details = event_scores(result)
    return {"eval_accuracy": result.overall.mean, "eval_events": kinds, "eval_details": details}


def report(checkpoint: str, per_kind: int, seed: int, batch_size: int, console: Console) -> None:
    """Examines a checkpoint and prints the tables of its card."""
    model = StepAudio.load(checkpoint, options=EngineOptions(max_rows=batch_size))
    items = held_out_items(per_kind, seed=seed)
    text_items = held_out_items(per_kind, seed=seed, text=True)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=2 * len(items) + len(text_items))
        done = 0

        def run(some: list[Item]) -> Result:
            nonlocal done
            result = evaluate(
                model.engine.generate, some, score_answer, progress=lambda n: progress.update(task, completed=done + n)
            )
            done += len(some)
            return result

        heard, mute, text = run(items), run(silenced(items)), run(text_items)
    kinds, details = event_scores(heard)
    console.print(heard.table(f"held-out scenes, {checkpoint}"))
    console.print(f"events in the reasoning: {kinds:.3f} right by kind and order, {details:.3f} in every word\n")
    console.print(control_table(mute))
    console.print(text.table("questions without sound"))
