"""Modality-grounded reasoning distillation (R1 §4.2): rounds in which a model learns from its own replies that listen.

A round t, from the model of the round before:

    questions   those that are not answered right without the sound
    distil      K replies to each; kept are those that are right, name what they heard, and follow from it (equation 3)
    sft         on what was kept, and on the text reasoning of the start (equation 4)
    filter      of the questions, and of those in words alone, what the new model answers right 3 to 6 times of 8
    rlvr        with rewards 0.8 for the answer and 0.2 for having reasoned (equation 5)
    scores      what an evaluation says

    WORKDIR/round_1/questions … round_T/scores     a folder each, with done.json
    WORKDIR/report.html, report.json               counts, examples kept and dropped with reasons, scores

Ended at any moment it goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from stepaudio_jax import checkpoints
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.lengths import Rendering
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.inference import Engine
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.rl import distil, grounding, loop, mgrd_report
from stepaudio_jax.rl.ask import Asking
from stepaudio_jax.rl.filter import Bounds, Count, filter_prompts
from stepaudio_jax.rl.prompts import Source, StoredSource, sources_of
from stepaudio_jax.rl.rollout import Prompt
from stepaudio_jax.rl.scoring import Score
from stepaudio_jax.rl.stage import engine_options, sampling_of
from stepaudio_jax.rl.steps import Steps, begin
from stepaudio_jax.text import Audio
from stepaudio_jax.training.configs import Config, copy_of
from stepaudio_jax.training.loop import train

Evaluate = Callable[[Engine], dict[str, float]]
Records = dict[str, list[int]]
"""Numbers of records, by source."""


def mgrd(config: Config, workdir: epath.PathLike, score: Score, *, evaluate: Evaluate | None = None) -> epath.Path:
    """All rounds of a config such as configs/mgrd_tiny.py; the last round's checkpoint.

    Raises:
      ConfigChangeError: another config than the one the folder was begun with.
      ValueError: a config that cannot be used, or a round in which nothing was kept, with the reasons.
      as `training.train` and `rl.loop.train`.
    """
    rounds = _Rounds(config, begin(config, workdir), score, evaluate)
    checkpoint = str(config.init)
    rounds.score("start", checkpoint)
    for number in range(1, config.rounds + 1):
        checkpoint = rounds.round(number, checkpoint)
    return epath.Path(checkpoint)


@dataclasses.dataclass(frozen=True)
class Deaf(Source):
    """A source whose prompts have no sound."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def weight(self) -> float:
        return self.source.weight

    def __len__(self) -> int:
        return len(self.source)

    def prompt(self, record: int) -> Prompt:
        prompt = self.source.prompt(record)
        turns = [
            dataclasses.replace(turn, parts=tuple(part for part in turn.parts if not isinstance(part, Audio)))
            for turn in prompt.conversation.turns
        ]
        return dataclasses.replace(prompt, conversation=dataclasses.replace(prompt.conversation, turns=tuple(turns)))


class _Rounds:
    """What the rounds of a run share."""

    def __init__(self, config: Config, workdir: epath.Path, score: Score, evaluate: Evaluate | None):
        self.config, self.workdir, self._score, self._evaluate = config, workdir, score, evaluate
        self.console = Console(stderr=True)
        self.steps = Steps(workdir, self.console)
        self.sources = sources_of(config)
        self.texts = [StoredSource(name, options) for name, options in config.texts.items()]
        self.judge, self.rules = grounding.judge_of(config.judge), grounding.Rules()
        self._engine: tuple[str, Engine] | None = None
        self.report: list[dict[str, Any]] = []

    def round(self, number: int, checkpoint: str) -> str:
        """One round; the checkpoint that it ends with."""
        name = f"round_{number}"
        found: dict[str, Any] = {"round": number}

        def step(what: str, do: Callable[[epath.Path], dict[str, Any]]) -> dict[str, Any]:
            found[what] = self.steps(f"{name}/{what}", do)
            self._show(found)
            return found[what]

        questions = step("questions", lambda folder: self._questions(folder, checkpoint, number))
        records = questions["kept"]
        step("distil", lambda folder: self._distil(folder, checkpoint, number, records))
        taught = step("sft", lambda folder: self._sft(folder, checkpoint, self.workdir / name / "distil" / "data"))
        checkpoint = taught["checkpoint"]
        left = step("filter", lambda folder: self._filter(folder, checkpoint, number, records))
        if left["kept"]:
            kept = self.workdir / name / "filter" / "kept.json"
            checkpoint = step("rlvr", lambda folder: self._rlvr(folder, checkpoint, kept))["checkpoint"]
        else:
            self.console.print(f"{name}: no question is of the right difficulty; there is nothing to reinforce")
        self.score(f"{name}/scores", checkpoint, found)
        return checkpoint

    def score(self, name: str, checkpoint: str, found: dict[str, Any] | None = None):
        found = {"round": 0} if found is None else found
        if self._evaluate is not None:
            evaluate = self._evaluate
            found["scores"] = self.steps(name, lambda _: evaluate(self.engine(checkpoint)))
        self._show(found)

    def engine(self, checkpoint: str) -> Engine:
        """Of a checkpoint; the last one asked for is kept."""
        if self._engine is None or self._engine[0] != checkpoint:
            self._engine = None
            self._engine = checkpoint, load_engine(checkpoint, options=engine_options(self.config))
        return self._engine[1]

    def _asking(self, samples: int, checkpoint: str, *of: int) -> Asking:
        """With a seed that goes by the run's and these numbers."""
        seed = int(np.random.SeedSequence((self.config.seed, *of)).generate_state(1)[0])
        return Asking(samples, sampling_of(self.config), seed, checkpoint)

    def _questions(self, folder: epath.Path, checkpoint: str, number: int) -> dict[str, Any]:
        control = self.config.control
        counts = filter_prompts(
            self.engine(checkpoint), [Deaf(source) for source in self.sources], self._score, folder,
            self._asking(control.samples, checkpoint, number, 1), keep=(0, control.most), console=self.console,
        )  # fmt: skip
        kept = _kept(counts, (0, control.most), self.sources)
        return {"asked": len(counts), "kept": kept, "histogram": _histogram(counts)}

    def _distil(self, folder: epath.Path, checkpoint: str, number: int, records: Records) -> dict[str, Any]:
        options = self.config.distil
        found = distil.distil(
            self.engine(checkpoint), self.sources, self._score, self.judge, folder,
            self._asking(options.samples, checkpoint, number, 2), rules=self.rules, most=options.most,
            records=records, console=self.console,
        )  # fmt: skip
        counts = distil.counts(found)
        if not counts.get(distil.KEPT):
            raise ValueError(f"round {number}: none of {len(found):,} replies can be learnt from: {counts}")
        rendering = Rendering(**self.config.rendering)
        recipe = Recipe(str(checkpoints.locate(checkpoint)), rendering=rendering)
        write_samples(folder / "data", distil.to_samples(found, self.sources), recipe)
        return {"replies": len(found), "outcomes": counts, "examples": distil.examples(found)}

    def _sft(self, folder: epath.Path, checkpoint: str, data: epath.Path) -> dict[str, Any]:
        config = copy_of(self.config.sft)
        config.init = checkpoint
        config.data.sources.audio.path = str(data)
        return {"checkpoint": str(train(config, folder / "run")), "steps": config.steps}

    def _filter(self, folder: epath.Path, checkpoint: str, number: int, records: Records) -> dict[str, Any]:
        options = self.config.filter
        keep = options.least, options.most
        records = records | {text.name: list(range(len(text))) for text in self.texts}
        counts = filter_prompts(
            self.engine(checkpoint), [*self.sources, *self.texts], self._score, folder,
            self._asking(options.samples, checkpoint, number, 3), keep=keep, records=records, console=self.console,
        )  # fmt: skip
        kept = sum(count.within(keep) for count in counts)
        return {"asked": len(counts), "kept": kept, "histogram": _histogram(counts)}

    def _rlvr(self, folder: epath.Path, checkpoint: str, kept: epath.Path) -> dict[str, Any]:
        config = copy_of(self.config.rlvr)
        config.init = checkpoint
        config.prompts = copy_of(self.config.prompts)
        config.prompts.kept = str(kept)
        config.prompts.sources.update(self.config.texts)
        return {"checkpoint": str(loop.train(config, folder / "run", self._score)), "updates": config.steps}

    def _show(self, found: dict[str, Any]):
        """Writes the report with what there is by now."""
        if found not in self.report:
            self.report = [each for each in self.report if each["round"] != found["round"]] + [found]
        mgrd_report.write(self.workdir, self.report, self.console)


def _kept(counts: Sequence[Count], keep: Bounds, sources: Sequence[Source]) -> Records:
    return {s.name: [c.record for c in counts if c.source == s.name and c.within(keep)] for s in sources}


def _histogram(counts: Sequence[Count]) -> list[int]:
    """How many questions had 0, 1, 2 … replies right."""
    most = counts[0].samples if counts else 0
    return [sum(count.right == right for count in counts) for right in range(most + 1)]
