"""Self-cognition (R1 §6.3): a model that was taught by text says now and then that it cannot hear; it is taught that it
can, by its own replies: first those that listen (self-distillation), then pairs of one that listens and one that denies
(DPO). R1 reports 6.76 % of replies that deny at the start, 2.63 % after the first and 0.02 % after the second.

    WORKDIR/before, after_sft, after_dpo    replies of the model at each stage, sorted, with done.json
    WORKDIR/sft, pairs, dpo                 the two runs, and what the second learns from
    WORKDIR/report.html, report.json        shares, examples

Ended at any moment it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from stepaudio_jax import checkpoints
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.lengths import Rendering
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.rl import grounding
from stepaudio_jax.rl.ask import Asking, ask_all
from stepaudio_jax.rl.distil import Found, with_reply
from stepaudio_jax.rl.prompts import sources_of
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.rl.stage import engine_options, sampling_of
from stepaudio_jax.rl.steps import Steps, begin
from stepaudio_jax.training import report
from stepaudio_jax.training.configs import Config, copy_of
from stepaudio_jax.training.loop import train

DENIALS = (
    r"\bi('m| am) (just |only |merely )?a(n)? (text|language)[- ](only |based )?model\b",
    r"\bas a(n)? (text|language)[- ](only |based )?(model|ai)\b",
    r"\bi (cannot|can't|can not|am unable to|am not able to|do not have the ability to) (directly )?"
    r"(hear|listen|process (the )?(audio|sound)|perceive (audio|sound)|access (the )?audio)",
    r"\bi (don't|do not) have (ears|access to (the )?(audio|sound))",
    r"\bno audio (was|is) (provided|attached|available)\b",
)
"""What a model says that does not know it hears."""

HEARS, DENIES, OTHER = "hears", "denies", "neither"


def denies(text: str) -> bool:
    return any(re.search(each, text, re.IGNORECASE) for each in DENIALS)


def self_cognition(config: Config, workdir: epath.PathLike) -> epath.Path:
    """All of a config such as configs/self_cognition_tiny.py; the last checkpoint.

    Raises:
      ConfigChangeError: another config than the one the folder was begun with.
      ValueError: a config that cannot be used; no reply that hears, or no pair, to learn from.
      as `training.train`.
    """
    return _Work(config, begin(config, workdir)).run()


class _Work:
    def __init__(self, config: Config, workdir: epath.Path):
        self.config, self.workdir = config, workdir
        self.console = Console(stderr=True)
        self.steps = Steps(workdir, self.console)
        self.sources = sources_of(config)
        self.judge, self.rules = grounding.judge_of(config.judge), grounding.Rules()
        self.stages: list[dict[str, Any]] = []

    def run(self) -> epath.Path:
        before = self._replies("before", str(self.config.init))
        taught = self.steps("sft", lambda folder: self._sft(folder, before))["checkpoint"]
        after = self._replies("after_sft", taught)
        pairs = self.steps("pairs", lambda folder: self._pairs(folder, before, after, taught))
        done = self.steps("dpo", lambda folder: self._dpo(folder, taught, pairs))["checkpoint"]
        self._replies("after_dpo", done)
        self.console.print(self._table())
        return epath.Path(done)

    def _replies(self, name: str, checkpoint: str) -> list[Found]:
        """Of the model at a stage, sorted; told in the report."""

        def ask(folder: epath.Path) -> dict[str, Any]:
            engine = load_engine(checkpoint, options=engine_options(self.config))
            asking = Asking(self.config.samples, sampling_of(self.config), self.config.seed, checkpoint)
            lines = ask_all(engine, self.sources, asking, self._sort, folder, what=name, console=self.console)
            replies = [[line["source"], line["record"], *reply] for line in lines for reply in line["replies"]]
            return {"replies": replies}

        found = [Found(*reply) for reply in self.steps(name, ask)["replies"]]
        shares = {kind: sum(each.outcome == kind for each in found) / len(found) for kind in (HEARS, DENIES, OTHER)}
        examples = {kind: [dataclasses.asdict(each) for each in found if each.outcome == kind][:3] for kind in shares}
        self.stages.append({"stage": name, "replies": len(found), "shares": shares, "examples": examples})
        self._write_report()
        return found

    def _sort(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[Sampled]]) -> list[dict[str, Any]]:
        flat = [(prompt, each) for prompt, own in zip(prompts, replies, strict=True) for each in own]
        verdicts = iter(self.judge([prompt for prompt, _ in flat], [each for _, each in flat]))
        return [
            {"replies": [[each.think, each.answer, self._outcome(each, next(verdicts))] for each in own]}
            for own in replies
        ]

    def _outcome(self, sampled: Sampled, verdict: grounding.Verdict) -> str:
        if denies(f"{sampled.think}\n{sampled.answer}"):
            return DENIES
        hears = sampled.complete and not sampled.truncated and self.rules.names_evidence(sampled.think)
        return HEARS if hears and verdict.grounded else OTHER

    def _recipe(self, checkpoint: str) -> Recipe:
        return Recipe(str(checkpoints.locate(checkpoint)), rendering=Rendering(**self.config.rendering))

    def _sft(self, folder: epath.Path, found: Sequence[Found]) -> dict[str, Any]:
        chosen = {(each.source, each.record): each for each in reversed(found) if each.outcome == HEARS}
        if not chosen:
            raise ValueError(f"none of {len(found):,} replies of the model hears anything; there is nothing to distil")
        samples = [self._sample(each) for each in chosen.values()]
        write_samples(folder / "data", samples, self._recipe(self.config.init))
        config = copy_of(self.config.sft)
        config.init, config.data.sources.own.path = str(self.config.init), str(folder / "data")
        return {"checkpoint": str(train(config, folder / "run")), "records": len(samples)}

    def _sample(self, good: Found, bad: Found | None = None) -> Sample:
        source = next(source for source in self.sources if source.name == good.source)
        asked = source.prompt(good.record).conversation
        worse = bad and with_reply(asked, bad.think, bad.answer)
        return Sample(with_reply(asked, good.think, good.answer), worse, where=f"{good.source}:{good.record}")

    def _pairs(
        self, folder: epath.Path, before: Sequence[Found], after: Sequence[Found], checkpoint: str
    ) -> dict[str, Any]:
        """A reply that hears and one that denies, to the same prompt: the later model's where it has both."""
        replies = (*before, *after)
        good, bad = ({(f.source, f.record): f for f in replies if f.outcome == kind} for kind in (HEARS, DENIES))
        both = sorted(good.keys() & bad.keys())[: self.config.most_pairs]
        if not both:
            raise ValueError("to no prompt there are a reply that hears and one that denies, of which to make pairs")
        write_samples(folder / "data", [self._sample(good[key], bad[key]) for key in both], self._recipe(checkpoint))
        return {"data": str(folder / "data"), "pairs": len(both)}

    def _dpo(self, folder: epath.Path, checkpoint: str, pairs: dict[str, Any]) -> dict[str, Any]:
        config = copy_of(self.config.dpo)
        config.init, config.data.sources.pairs.path = checkpoint, pairs["data"]
        return {"checkpoint": str(train(config, folder / "run"))}

    def _table(self) -> Table:
        table = Table(title="does it know that it hears? shares of its replies")
        for name in ("", "replies", HEARS, DENIES, OTHER):
            table.add_column(name, justify="right" if name else "left")
        for stage in self.stages:
            shares = (f"{share:.2%}" for share in stage["shares"].values())
            table.add_row(stage["stage"].replace("_", " "), f"{stage['replies']:,}", *shares)
        return table

    def _write_report(self):
        (self.workdir / "report.json").write_text(json.dumps(self.stages, indent=2) + "\n")
        parts = ["<h1>Self-cognition</h1>"]
        for stage in self.stages:
            shares = [(kind, f"{share:.2%}") for kind, share in stage["shares"].items()]
            parts.append(report.table(f"{stage['stage'].replace('_', ' ')}: {stage['replies']:,} replies", shares))
            parts += [
                f"<pre>{html.escape(kind)}: {html.escape(each['think'])}\n→ {html.escape(each['answer'])}</pre>"
                for kind, own in stage["examples"].items()
                for each in own[:1]
            ]
        (self.workdir / "report.html").write_text(report.page("self-cognition", parts))
