"""The effects that R1 reports of reinforcement (RECIPE §2), in small: the tiny model on the miniature world.

    make rl-effects, or: python -m benchmarks.rl_effects [--only base,rlvr,…] [--seeds 0,1,2]
    python -m benchmarks.rl_effects --only hot --seeds 0     three minutes

hot         the shipped model at a temperature at which it is right 60 % of the time; a few updates
base        a model whose supervised training is stopped where it answers 50 to 70 % of held-out questions right; the
            start of all others. Accuracy is that of replies sampled as the rollouts are, at temperature 1; that of the
            likeliest replies stands beside it
rlvr        rewards 0.8 for the answer and 0.2 for having reasoned; the baseline of a reply is the mean of the others to
            its prompt (RLOO), for no critic can be learnt in the few updates of so short a run
no-format   the same without the 0.2
counts      eight replies of the base to each of 2,000 questions (`stepaudio rl filter`)
filtered    rlvr on the questions of which 3 to 6 of 8 are right, as many updates
hopeless    on those of which none is right
unfiltered  on all of them
listening   MGRD, two rounds, from a model that was taught to reason from captions, half of which are of another scene:
            accuracy where the caption contradicts the sound, and by think budget

Each is done once for every seed: what it found lies in its folder, and a run that was ended goes on. At the end tables
and a figure: WORKDIR/report.html.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.evals.evaluate import evaluate
from stepaudio_jax.evals.miniature import GREEDY, HELD_OUT, Item, captioned_items, examine_listening, score_answer
from stepaudio_jax.inference import Engine, Request, SamplingParams
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.rl import loop
from stepaudio_jax.rl.ask import Asking
from stepaudio_jax.rl.filter import filter_prompts, write_kept
from stepaudio_jax.rl.mgrd import mgrd
from stepaudio_jax.rl.prompts import sources_of
from stepaudio_jax.rl.rewards import RewardRunner
from stepaudio_jax.rl.scoring import Score, score
from stepaudio_jax.rl.stage import engine_options, sampling_of
from stepaudio_jax.rl.steps import Steps
from stepaudio_jax.training import read_config, report, train
from stepaudio_jax.training.configs import Config, copy_of
from stepaudio_jax.training.metrics import read as read_metrics

KINDS = ("timbre", "order", "direction")
EVENTS = 1
RUNS = ("rlvr", "no-format", "filtered", "hopeless", "unfiltered")
PARTS = ("base", *RUNS[:2], "counts", *RUNS[2:], "listening", "hot")
LISTENS = 0.15
"""Of the replies that the start of MGRD is taught, those that reason from the sound."""
BUDGETS = (0, 16, 32, 64)
RECORDS = 2_000


def base_config() -> Config:
    """Supervised training, stopped early."""
    config = copy_of(read_config("configs/tiny.py"))
    config.steps = config.eval_every = config.checkpoints.save_every = 200
    config.save_dtype = "float32"
    config.data.curriculum = ((200, EVENTS, KINDS),)
    config.optim.learning_rate, config.optim.warmup_steps = 2e-3 / 3, 199
    config.optim.schedule = "constant"
    return config


def rl_config(base: str, seed: int) -> Config:
    config = copy_of(read_config("configs/rlvr_tiny.py"))
    config.init, config.seed = base, seed
    config.prompts.miniature.update({"kinds": KINDS, "max_events": EVENTS})
    config.trainable = ("encoder", "adaptor", "decoder")  # a model that was stopped early still learns to hear
    config.optim.learning_rate, config.optim.end_learning_rate, config.optim.warmup_steps = 5e-4, 5e-5, 8
    config.optim.schedule = "cosine"
    # Many prompts with few replies each: what one prompt has to teach, four replies tell.
    sizes = {"baseline": "rloo", "prompts": 96, "samples": 4, "minibatches": 2}
    config.rl.update(sizes | {"share_prompts": True, "rows": 16, "row_tokens": 160, "sound_rows": 4})
    config.rl.engine.burst = 8  # a reply has some twenty tokens
    return config


SAMPLED = SamplingParams(temperature=1.0, max_new_tokens=96)
HOT = 1.8


def questions(per_kind: int, sampling: SamplingParams = GREEDY) -> list[Item]:
    """Held out: none of the runs has seen them."""
    items = []
    for kind in KINDS:
        for index in range(per_kind):
            question = miniature.make_question(
                np.random.default_rng((HELD_OUT, 7, index, *kind.encode())), kind, max_events=EVENTS
            )
            own = dataclasses.replace(sampling, seed=len(items))
            items.append(Item(Request(question.prompt, own, id=f"{kind}-{index}"), question, kind))
    return items


def examine(engine: Engine, per_kind: int, temperature: float = 1.0) -> dict[str, float]:
    as_rollouts = dataclasses.replace(SAMPLED, temperature=temperature)
    sampled = evaluate(engine.generate, questions(per_kind, as_rollouts), score_answer)
    likeliest = evaluate(engine.generate, questions(per_kind), score_answer)
    thinks = [len(engine.tokenizer.encode(done.think)) for _, done, _ in sampled.answers]
    return {
        "eval_accuracy": sampled.overall.mean,
        "eval_greedy": likeliest.overall.mean,
        "eval_think_tokens": float(np.mean(thinks)),
    }


def captioned(count: int, seed: int) -> list[Sample]:
    """Questions with captions, and replies most of which reason from them."""
    rng, kinds = np.random.default_rng((seed, 1)), [kind for kind in miniature.KINDS if kind != "dialogue"]
    return [
        Sample(
            miniature.make_captioned(
                rng, kinds[i % len(kinds)], contradicts=bool(rng.random() < 0.5), listens=bool(rng.random() < LISTENS),
                max_events=EVENTS,
            ).conversation
        )
        for i in range(count)
    ]  # fmt: skip


def texts(count: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng((seed, 2))
    return [Sample(miniature.make_text_question(rng).conversation) for _ in range(count)]


def listen(engine: Engine, per_kind: int) -> dict[str, float]:
    """Accuracy where the caption is right, and wrong; and where it is wrong by the think budget."""
    found = examine_listening(engine.generate, per_kind=per_kind)
    for budget in BUDGETS:
        items = captioned_items(per_kind, contradicts=True, seed=1)
        items = [
            dataclasses.replace(item, request=dataclasses.replace(
                item.request, sampling=dataclasses.replace(item.request.sampling, think_budget=budget)))
            for item in items
        ]  # fmt: skip
        right = evaluate(engine.generate, items, lambda done, q: float(miniature.is_correct(done.answer, q.answer)))
        found[f"caption wrong, {budget} tokens of thinking"] = right.overall.mean
    return found


class Effects:
    """The parts, each in a folder."""

    def __init__(self, workdir: str, scoring: Score, console: Console, updates: int, per_kind: int):
        self.workdir, self.scoring, self.console = Path(workdir).resolve(), scoring, console
        self.updates, self.per_kind = updates, per_kind
        self.steps = Steps(workdir, console)

    def base(self) -> dict[str, Any]:
        def make(folder: epath.Path) -> dict[str, Any]:
            start = time.monotonic()
            path = train(base_config(), folder / "run")
            found = examine(load_engine(str(path), options=engine_options(rl_config("", 0))), self.per_kind)
            return {"checkpoint": str(path), "seconds": time.monotonic() - start} | found

        return self.steps("base", make)

    def counts(self) -> dict[str, Any]:
        """Of the base, and what the three ways of choosing prompts have left."""

        def make(folder: epath.Path) -> dict[str, Any]:
            config = rl_config(self.base()["checkpoint"], 0)
            config.prompts.miniature.update({"records": RECORDS, "seed": 0})
            sources = sources_of(config)
            engine = load_engine(config.init, options=engine_options(config))
            asking = Asking(8, sampling_of(config), 0, config.init)
            counts = filter_prompts(engine, sources, self.scoring, folder, asking, console=self.console)
            for name, keep in (("filtered", (3, 6)), ("hopeless", (0, 0)), ("unfiltered", (0, 8))):
                kept = [(c.source, c.record) for c in counts if c.within(keep)]
                write_kept(folder / f"{name}.json", sources, kept)
            return {"histogram": [sum(c.right == right for c in counts) for right in range(9)]}

        return self.steps("counts", make)

    def listening(self, seed: int) -> dict[str, Any]:
        """What each round of MGRD came to."""

        def make(folder: epath.Path) -> dict[str, Any]:
            start = time.monotonic()
            for name, made in (("captions", captioned(800, seed)), ("texts", texts(300, seed))):
                write_samples(folder / name, made, Recipe(str(checkpoints.locate("tiny"))))
            taught = copy_of(read_config("configs/sft_tiny.py"))
            taught.data.sources.scenes.path = str(folder / "captions")
            taught.steps = taught.eval_every = taught.checkpoints.save_every = 100
            taught.seed, taught.save_dtype = seed, "float32"
            config = copy_of(read_config("configs/mgrd_tiny.py"))
            config.init, config.seed = str(train(taught, folder / "start")), seed
            config.sft.data.sources.text.path = str(folder / "texts")
            mgrd(config, folder / "mgrd", self.scoring, evaluate=functools.partial(listen, per_kind=self.per_kind // 4))
            rounds = json.loads((folder / "mgrd/report.json").read_text())
            kept = [each.get("distil", {}).get("outcomes") for each in rounds]
            return {"seconds": time.monotonic() - start, "scores": [each["scores"] for each in rounds], "kept": kept}

        return self.steps(f"listening/seed_{seed}", make)

    def hot(self, seed: int) -> dict[str, Any]:
        """Accuracy at a high temperature, before and after."""

        def make(folder: epath.Path) -> dict[str, Any]:
            config = rl_config("tiny", seed)
            config.rl.temperature, config.rl.prompts = HOT, 48
            config.steps = config.eval_every = config.checkpoints.save_every = 12
            config.optim.warmup_steps = 2
            start = time.monotonic()
            looks = functools.partial(examine, per_kind=self.per_kind, temperature=HOT)
            path = loop.train(config, folder / "run", self.scoring, evaluate=looks)
            lines = [line for line in read_metrics(epath.Path(path).parent) if "eval_accuracy" in line]
            before, after = (line["eval_accuracy"] for line in lines)
            return {"seconds": time.monotonic() - start, "before": before, "after": after}

        return self.steps(f"hot/seed_{seed}", make)

    def run(self, part: str, seed: int) -> dict[str, Any]:
        """Accuracy of the base and after the run, with the curve of what was looked at between."""

        def make(folder: epath.Path) -> dict[str, Any]:
            config = rl_config(self.base()["checkpoint"], seed)
            config.steps, config.eval_every = self.updates, max(1, self.updates // 4)
            config.checkpoints.save_every = max(1, self.updates // 4)
            if part == "no-format":
                config.prompts.miniature.reward, config.prompts.miniature.accuracy = "exact", ""
            if part in RUNS[2:]:
                config.prompts.miniature.update({"records": RECORDS, "seed": 0})
                self.counts()
                config.prompts.kept = str(self.workdir / "counts" / f"{part}.json")
            start = time.monotonic()
            looks = functools.partial(examine, per_kind=self.per_kind)
            path = loop.train(config, folder / "run", self.scoring, evaluate=looks)
            lines = read_metrics(epath.Path(path).parent)
            curves = {
                name: [(line["step"], line[name]) for line in lines if name in line]
                for name in ("eval_accuracy", "eval_greedy", "eval_think_tokens", "reward", "think_tokens", "entropy")
            }
            return {"seconds": time.monotonic() - start, "curves": curves}

        return self.steps(f"{part}/seed_{seed}", make)


def table(found: dict[str, dict[int, dict[str, Any]]], base: dict[str, Any]) -> Table:
    rows = Table(title=f"held-out accuracy; the base: {base['eval_accuracy']:.3f}, greedy {base['eval_greedy']:.3f}, "
                 f"{base['eval_think_tokens']:.1f} tokens of thinking")  # fmt: skip
    for name in ("run", "seed", "accuracy", "points", "greedy", "points", "think tokens", "minutes"):
        rows.add_column(name, justify="left" if name == "run" else "right")
    for part, seeds in found.items():
        for seed, each in sorted(seeds.items()):
            numbers = []
            for name in ("eval_accuracy", "eval_greedy"):
                first, last = (each["curves"][name][at][1] for at in (0, -1))
                numbers += [f"{last:.3f}", f"{100 * (last - first):+.1f}"]
            think = each["curves"]["eval_think_tokens"][-1][1]
            rows.add_row(part, str(seed), *numbers, f"{think:.1f}", f"{each['seconds'] / 60:.1f}")
    return rows


def listening_table(found: dict[int, dict[str, Any]]) -> Table:
    rows = Table(title="MGRD from a model that reasons from captions: held-out questions, by round")
    names = [name for each in found.values() for name in each["scores"][0]]
    for name in ("", *(f"seed {seed}, round {i}" for seed, each in found.items() for i in range(len(each["scores"])))):
        rows.add_column(name, justify="right" if name else "left")
    for name in dict.fromkeys(names):
        rows.add_row(name, *(f"{score[name]:.3f}" for each in found.values() for score in each["scores"]))
    rows.add_row("minutes", *(f"{each['seconds'] / 60:.1f}" if i == 0 else "" for each in found.values()
                              for i in range(len(each["scores"]))))  # fmt: skip
    return rows


def figure(found: dict[str, dict[int, dict[str, Any]]], names: tuple[str, ...]) -> str:
    """Curves of all runs and seeds as SVG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3 * len(names)), layout="constrained")
    for axes, name in zip(np.atleast_1d(drawing.subplots(len(names))), names, strict=True):
        for color, (part, seeds) in enumerate(found.items()):
            for number, each in enumerate(seeds.values()):
                points = each["curves"].get(name, [])
                label = part if number == 0 else None
                axes.plot(*zip(*points, strict=True), color=f"C{color}", label=label, linewidth=1)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    svg = io.StringIO()
    drawing.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS[:-1]), help="parts, with commas between")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", default="runs/rl-effects")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--per-kind", type=int, default=100, help="held-out questions of each kind")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    console = Console(width=110)
    jax.config.update("jax_compilation_cache_dir", str(Path(args.workdir).resolve() / "programs"))
    with RewardRunner() as runner:
        scoring = functools.partial(score, runner)
        effects = Effects(args.workdir, scoring, console, args.updates, args.per_kind)
        seeds = list(map(int, args.seeds.split(",")))
        if "listening" in wanted:
            console.print(listening_table({seed: effects.listening(seed) for seed in seeds}))
            wanted.remove("listening")
        if "hot" in args.only.split(","):
            for seed in seeds:
                found = effects.hot(seed)
                console.print(
                    f"hot, seed {seed}: {found['before']:.3f} to {found['after']:.3f} in {found['seconds']:.0f} s"
                )
            wanted.remove("hot")
        if not wanted:
            return
        base = effects.base()
        console.print(f"base: {base['eval_accuracy']:.3f} right, after {base['seconds'] / 60:.1f} minutes")
        if "counts" in wanted:
            console.print(f"replies right, of 8, 0 to 8: {effects.counts()['histogram']}")
        runs: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in seeds:
            for part in (part for part in RUNS if part in wanted):
                runs.setdefault(part, {})[seed] = effects.run(part, seed)
    if runs:
        page = Console(record=True, file=io.StringIO(), width=110)
        for where in (console, page):
            where.print(table(runs, base))
        curves = figure(runs, ("eval_accuracy", "eval_greedy", "eval_think_tokens", "think_tokens", "entropy"))
        body = page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        Path(args.workdir, "report.html").write_text(report.page("effects of reinforcement", [body, curves]))


if __name__ == "__main__":
    main()
