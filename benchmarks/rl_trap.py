"""The verifiable-reward trap, and the way out (R1.5 §3.3), in small: the tiny model on the small world's dialogues.

    make rl-trap, or: python -m benchmarks.rl_trap [--only sft,rlvr,…] [--seeds 0,1,2]

sft         the base of `benchmarks.rl_effects` (its supervised training was stopped early), taught questions and
            dialogues by replies that are terse or whole, and keep to what was agreed on or not, as it comes
rlvr        sft, reinforced by verified answers alone, half as many updates again: 0.8 for exactly the answer, 0.2 for
            having reasoned
rlhf        rlvr, reinforced in one stage by rubrics, preferences and verified answers, held to rlvr by a KL
learned     rlhf with a judge that was taught (--judge, what `benchmarks.tiny_judge` has made) instead of the rule
rubric-preference, preference-rubric    the same in two stages, of half as many updates each, one kind of dialogue after
            the other

Rewards of dialogues are the small world's rule. What is looked at is held out, and as sampled as rollouts are: how many
replies to questions name the right answer, in whatever words, and the dialogue scores of `evals.dialogues`. Each stage
of each seed is done once: what it found lies in its folder, and a run that was ended goes on. At the end a table and a
figure: WORKDIR/report.html.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from benchmarks.rl_effects import EVENTS, KINDS, SAMPLED, Effects, questions, rl_config
from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.evals.dialogues import examine_dialogues
from stepaudio_jax.evals.evaluate import evaluate
from stepaudio_jax.inference import Engine
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.miniature.dialogues import STATEMENTS
from stepaudio_jax.miniature.judging import is_right
from stepaudio_jax.rl import loop
from stepaudio_jax.rl.reward_model.build import make_reward_model
from stepaudio_jax.rl.reward_model.scoring import MixedScore
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.rl.scoring import Score, score
from stepaudio_jax.rl.stage import engine_options
from stepaudio_jax.rl.steps import Steps
from stepaudio_jax.text import assistant
from stepaudio_jax.training import read_config, report, train
from stepaudio_jax.training.configs import Config, copy_of
from stepaudio_jax.training.metrics import read as read_metrics

PARTS = ("sft", "rlvr", "rlhf", "rubric-preference", "preference-rubric", "learned")
LOOKED_AT = ("accuracy", "dialogue", "dialogue/rubric", "dialogue/preference", "dialogue/words")
AS_IT_COMES = miniature.Care(keeps=0.6, whole=0.6, warm=0.5)


def taught(dialogues: int, asked: int, seed: int) -> list[Sample]:
    """What the start is taught: dialogues, and questions whose answers are words or sentences."""
    made = []
    for number in range(dialogues):
        rng = np.random.default_rng((seed, 3, number))
        kind = KINDS[int(rng.integers(len(KINDS)))] if number % 4 else None
        manner = miniature.MANNERS[-1] if kind is None else None
        dialogue = miniature.make_dialogue(
            rng, kind, manner=manner or miniature.MANNERS[number % 3], care=AS_IT_COMES, max_events=EVENTS
        )
        made.append(Sample(dialogue.conversation))
    for number in range(asked):
        rng = np.random.default_rng((seed, 4, number))
        question = miniature.make_question(rng, KINDS[number % len(KINDS)], max_events=EVENTS)
        *turns, reply = question.conversation.turns
        if rng.random() < AS_IT_COMES.whole:
            reply = assistant(STATEMENTS[question.kind].format(question.answer), think=reply.think)
        made.append(Sample(dataclasses.replace(question.conversation, turns=(*turns, reply))))
    return made


def sft_config(base: str, folder: epath.Path, seed: int) -> Config:
    config = copy_of(read_config("configs/sft_tiny.py"))
    config.init, config.seed, config.save_dtype = base, seed, "float32"
    config.data.sources.scenes.path = str(folder)
    config.steps = config.eval_every = config.checkpoints.save_every = 150
    config.optim.learning_rate, config.optim.end_learning_rate = 1e-3, 1e-4
    return config


def rlvr_config(init: str, seed: int, updates: int) -> Config:
    config = rl_config(init, seed)
    config.trainable, config.optim.learning_rate = ("decoder",), 2.5e-4  # it hears by now; with more it forgets to
    config.steps = config.checkpoints.save_every = config.eval_every = updates
    return config


def rlhf_config(init: str, seed: int, updates: int, rubric_share: float) -> Config:
    """Dialogues, of which a share is judged by rubrics; and questions with verified answers."""
    config = rlvr_config(init, seed, updates)
    whole = read_config("configs/rlhf_tiny.py")
    config.prompts.dialogues, config.reward_model = whole.prompts.dialogues, whole.reward_model
    config.prompts.dialogues.update({"kinds": KINDS, "max_events": EVENTS, "rubric_share": rubric_share})
    config.prompts.miniature.update({"weight": 1.0, "accuracy": "named"})  # a sentence is no mistake
    config.rl.kl.weight = 0.02
    config.rl.update({"normalise": whole.rl.normalise, "row_tokens": 320, "rows": 8})
    return config


def examine(engine: Engine, per_kind: int) -> dict[str, float]:
    answers = evaluate(engine.generate, questions(per_kind, SAMPLED), _names_the_answer)
    dialogues = examine_dialogues(engine.generate, 2 * per_kind, kinds=KINDS, max_events=EVENTS, sampling=SAMPLED)
    return {"accuracy": answers.overall.mean} | dialogues


def _names_the_answer(completion, question: miniature.Question) -> float:
    facts = miniature.Facts(kind=question.kind, answer=question.answer)
    return float(completion.complete and is_right(completion.answer, facts))


class Trap:
    """The stages, each in a folder."""

    def __init__(self, steps: Steps, base: str, runner: RewardRunner, updates: int, per_kind: int, judge: str):
        self.steps, self.base, self.runner, self.judge = steps, base, runner, judge
        self.updates, self.per_kind = updates, per_kind

    def sft(self, seed: int) -> dict[str, Any]:
        def make(folder: epath.Path) -> dict[str, Any]:
            start = time.monotonic()
            data = folder / "data"
            if not (data / "dataset.json").exists():
                write_samples(data, taught(2_400, 1_200, seed), Recipe(str(checkpoints.locate("tiny"))))
            path = train(sft_config(self.base, data, seed), folder / "run")
            engine = load_engine(str(path), options=engine_options(rlhf_config("", 0, 1, 0.5)))
            return self._found(path, start, [{"step": 0} | examine(engine, self.per_kind)])

        return self.steps(f"sft/seed_{seed}", make)

    def rlvr(self, seed: int) -> dict[str, Any]:
        init = self.sft(seed)["checkpoint"]
        return self._reinforced(f"rlvr/seed_{seed}", rlvr_config(init, seed, 3 * self.updates // 2))

    def rlhf(self, seed: int) -> dict[str, Any]:
        init = self.rlvr(seed)["checkpoint"]
        return self._reinforced(f"rlhf/seed_{seed}", rlhf_config(init, seed, self.updates, 0.5))

    def learned(self, seed: int) -> dict[str, Any]:
        config = rlhf_config(self.rlvr(seed)["checkpoint"], seed, self.updates, 0.5)
        config.reward_model.update({"judge": "checkpoint", "at": self.judge, "max_new_tokens": 128})
        return self._reinforced(f"learned/seed_{seed}", config)

    def separate(self, part: str, seed: int) -> dict[str, Any]:
        """Two stages, one after the other."""
        found = self.rlvr(seed)
        for number, kind in enumerate(part.split("-")):
            config = rlhf_config(found["checkpoint"], seed + 100 * number, self.updates // 2, float(kind == "rubric"))
            found = self._reinforced(f"{part}/{kind}/seed_{seed}", config)
        return found

    def __call__(self, part: str, seed: int) -> dict[str, Any]:
        return self.separate(part, seed) if "-" in part else getattr(self, part)(seed)

    def _reinforced(self, name: str, config: Config) -> dict[str, Any]:
        def make(folder: epath.Path) -> dict[str, Any]:
            start = time.monotonic()
            scoring: Score = functools.partial(score, self.runner)
            if "reward_model" in config:
                scoring = MixedScore(self.runner, make_reward_model(config, folder / "run"))
            looks = functools.partial(examine, per_kind=self.per_kind)
            path = loop.train(config, folder / "run", scoring, evaluate=looks)
            lines = [line for line in read_metrics(epath.Path(path).parent) if "accuracy" in line]
            return self._found(path, start, lines)

        return self.steps(name, make)

    def _found(self, path, start: float, lines: list[dict[str, Any]]) -> dict[str, Any]:
        looks = [{name: line[name] for name in ("step", *LOOKED_AT)} for line in lines]
        return {"checkpoint": str(path), "seconds": time.monotonic() - start, "looks": looks}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> Table:
    rows = Table(title="held-out questions and dialogues, as sampled")
    for name in ("stage", "seed", *(name.rpartition("/")[2] for name in LOOKED_AT), "minutes"):
        rows.add_column(name, justify="left" if name == "stage" else "right")
    for part, seeds in found.items():
        for seed, each in sorted(seeds.items()):
            last = each["looks"][-1]
            numbers = [f"{last[name]:.1f}" if "words" in name else f"{last[name]:.3f}" for name in LOOKED_AT]
            rows.add_row(part, str(seed), *numbers, f"{each['seconds'] / 60:.1f}")
        if len(seeds) > 1:
            means = [float(np.mean([each["looks"][-1][name] for each in seeds.values()])) for name in LOOKED_AT]
            rows.add_row(f"{part}, mean", "", *(f"{mean:.3f}" for mean in means), "", style="bold")
    return rows


def figure(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Accuracy against each dialogue score, a path for each seed, as SVG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(12, 4), layout="constrained")
    for axes, name in zip(drawing.subplots(1, 3), LOOKED_AT[1:4], strict=True):
        for color, (part, seeds) in enumerate(found.items()):
            points = [(each["looks"][-1]["accuracy"], each["looks"][-1][name]) for each in seeds.values()]
            axes.scatter(*zip(*points, strict=True), color=f"C{color}", label=part)
        for before, after in (("sft", "rlvr"), ("rlvr", "rlhf")):
            for seed in found.get(after, {}):
                ends = [found[part][seed]["looks"][-1] for part in (before, after) if seed in found.get(part, {})]
                axes.plot([end["accuracy"] for end in ends], [end[name] for end in ends], color="0.7", zorder=0)
        axes.set(xlabel="accuracy", ylabel=name, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    drawing.axes[0].legend(fontsize=8)
    svg = io.StringIO()
    drawing.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS[:-1]), help="stages, with commas between")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", default="runs/rl-trap")
    parser.add_argument("--effects", default="runs/rl-effects", help="where the base lies, or is made")
    parser.add_argument("--judge", default="runs/tiny-judge/run/checkpoint", help="of the stage learned")
    parser.add_argument("--updates", type=int, default=32, help="of a stage")
    parser.add_argument("--per-kind", type=int, default=100, help="held-out questions of each kind")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    console = Console(width=120)
    jax.config.update("jax_compilation_cache_dir", str(Path(args.workdir).resolve() / "programs"))
    with RewardRunner() as runner:
        effects = Effects(args.effects, functools.partial(score, runner), console, 40, 100)
        steps = Steps(str(Path(args.workdir).resolve()), console)
        trap = Trap(steps, effects.base()["checkpoint"], runner, args.updates, args.per_kind, args.judge)
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in map(int, args.seeds.split(",")):
            for part in (part for part in PARTS if part in wanted):
                found.setdefault(part, {})[seed] = trap(part, seed)
    page = Console(record=True, file=io.StringIO(), width=100)
    for where in (console, page):
        where.print(table(found))
    body = page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    Path(args.workdir, "report.html").write_text(report.page("the trap, and the way out", [body, figure(found)]))


if __name__ == "__main__":
    main()
