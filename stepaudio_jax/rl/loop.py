"""The RL trainer: a config in, a checkpoint folder out. Ended at any moment, it goes on where it was.

An update is a function of the state before it: prompts come from (seed, update), every reply has a seed of its own, and
the engine writes the same whatever runs beside. So a run that was killed goes on from its last checkpoint to the same
bits, and of the rollout it was in nothing is written twice: finished replies lie in rollouts/NNNNNN.jsonl.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints import wait_for_all
from stepaudio_jax.inference import Engine, Request
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.parallel.first import is_first, of_first
from stepaudio_jax.rl import losses, ppo
from stepaudio_jax.rl.guards import GUARDS, signs
from stepaudio_jax.rl.prompts import PREFERENCE, Prompts, with_rubric
from stepaudio_jax.rl.rollout import Prompt, Sampled, rollout, to_example
from stepaudio_jax.rl.scoring import Score
from stepaudio_jax.rl.stage import (
    as_critic,
    critic_of,
    engine_options,
    layout_of,
    policy_of,
    ppo_of,
    rules_of,
    sampling_of,
)
from stepaudio_jax.training import report
from stepaudio_jax.training.changes import check_unchanged, written
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.initial import check_init, init_model, lora_config
from stepaudio_jax.training.loop import run_checkpoints, whole_modules
from stepaudio_jax.training.metrics import MetricsLog
from stepaudio_jax.training.signals import Interrupts, Stopped
from stepaudio_jax.training.sources import run_tokenizer
from stepaudio_jax.training.step import TrainState

Evaluate = Callable[[Engine], dict[str, float]]

PHASES = ("rollout", "reward", "learn", "hand over")
LEAST_SPREAD = 1e-6
"""Standard deviation of rewards below which they are all the same."""


def train(
    config: Config,
    workdir: epath.PathLike,
    score: Score,
    *,
    evaluate: Evaluate | None = None,
    allow_change: Sequence[str] = (),
) -> epath.Path:
    """Trains by a config such as configs/rlvr_tiny.py, or goes on with the run that lies there: writes
    `workdir/checkpoint`. Beside it lies what a supervised run writes (training.train), and rollouts/. Over several
    processes, each runs this; the first scores, and writes what is not arrays.

    Args:
      score: rewards of a rollout.
      evaluate: called with the engine every `config.eval_every` updates, and before the first.
      allow_change: keys of the config that may differ from those the run was begun with.

    Raises:
      as `training.train`; ValueError: a field of `rl` that cannot be used.
    """
    workdir = epath.Path(workdir)
    with Interrupts() as interrupts:
        check_unchanged(config, workdir / "config.json", allow_change)
        if not config.init:
            raise ValueError("config.init: a policy to begin with is needed; name a checkpoint")
        check_init(config)
        run = _Run(config, workdir, score, evaluate, interrupts)
        if (workdir / "checkpoint").exists() and run.done >= config.steps:
            return workdir / "checkpoint"
        try:
            run.updates()
            run.export()
        except Stopped as stopped:
            run.tell(f"{stopped} after update {run.done}; the same command goes on from there")
            raise
        finally:
            run.close()
    return workdir / "checkpoint"


class _Run:
    """What the updates of a run share.

    Attributes:
      done: updates so far.
    """

    def __init__(self, config: Config, workdir: epath.Path, score: Score, evaluate: Evaluate | None, interrupts):
        self.config, self.workdir, self.score, self.evaluate = config, workdir, score, evaluate
        self.interrupts, self.console = interrupts, Console(stderr=True, quiet=not is_first())
        self.lora, (rules, of_critic) = lora_config(config), rules_of(config)
        self.ppo = ppo_of(config)
        self.tokenizer, tokenizer_json = run_tokenizer(config)
        self.prompts = Prompts(config)
        self.layout = layout_of(config, rules)
        self.policy = policy_of(config, rules).begin(init_model(config, rules))
        self.critic = None
        if self.ppo.baseline == "critic":
            self.critic = critic_of(config, of_critic).begin(as_critic(init_model(config, of_critic), config.seed))
        held = config.rl.kl.weight or config.rl.kl.reward
        self.replies_to_beat = "reward_model" in config and config.reward_model.references == "reference"
        self.held, follow = bool(held), config.rl.reference
        stays = None if follow.every else jnp.dtype(config.compute_dtype)  # one that moves does so by small steps
        self.keeper = self.policy if of_critic is rules else policy_of(config, of_critic)  # reads as the reference
        self.reference = self.keeper.taken(self.policy.kept(stays)) if held or self.replies_to_beat else None
        if follow.every < 0 or not 0 < follow.rate <= 1:
            raise ValueError(f"rl.reference: expected every from 0 and a rate of more than 0 to 1, found {follow}")
        self.moves = self.reference is not None and follow.every > 0
        if unknown := set(config.rl.guards) - set(GUARDS):
            raise ValueError(f"rl.guards: expected {', '.join(GUARDS)}, found {', '.join(sorted(unknown))}")
        self.kl_scale = 1.0
        self.saved = run_checkpoints(config, workdir, self.policy.model(), tokenizer_json)
        wait_for_all("every process has read what was there")
        if is_first():
            (workdir / "rollouts").mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(written(config))
        self.saved.clear()
        self.done = self._restore()
        self.log = MetricsLog(workdir, after=self.done)
        serving = ShardingRules(rules.mesh, "serve")
        served = self.policy.model(jnp.dtype(config.compute_dtype))
        self.engine = Engine(served, self.tokenizer, engine_options(config), rules=serving)
        self.sampling = sampling_of(config)
        self.begun = time.monotonic()

    def updates(self):
        columns = (TextColumn("{task.fields[phase]}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[about]}"), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as self.progress:
            whole = {"total": self.config.steps, "completed": self.done}
            self.bar = self.progress.add_task("", phase="update", about="", **whole)
            self.phase_bar = self.progress.add_task("", total=1, phase="", about="", visible=False)
            if self.done == 0:
                self._look()
            while self.done < self.config.steps:
                with self.interrupts.breakable():
                    metrics = self._update(self.done)
                self.done += 1
                self.interrupts.nothing_to_lose = False
                self._tell(metrics)
                stopped = self.interrupts.stop_after(self.done)
                due = self.done % self.config.checkpoints.save_every == 0 or self.done == self.config.steps
                if due or stopped:
                    self._save()
                if stopped:
                    raise stopped
                if self.done % self.config.eval_every == 0:
                    self._look()

    def export(self):
        """The finished policy, as `workdir/checkpoint`."""
        self.saved.wait()
        path, rest = self.workdir / "checkpoint", {"generation": self.config.generation.to_dict(), "overwrite": True}
        text, dtype = self.tokenizer.backend.to_str(), jnp.dtype(self.config.save_dtype)
        if self.lora is None:
            checkpoints.save(path, self.policy.model(dtype), text, **rest)
        else:
            base, modules = self.config.init, whole_modules(self.config)
            checkpoints.save_adapters(path, self.policy.model(), self.lora, text, base=base, modules=modules, **rest)

    def close(self):
        self.log.close()
        self.saved.wait()
        if is_first():
            report.write(self.workdir, self.saved.steps(), self.console, curves=CURVES)

    def tell(self, what: str):
        self.console.print(what, soft_wrap=True, markup=False, highlight=False)
        self.log.log({"step": self.done, "event": what})

    def _update(self, number: int) -> dict[str, float]:
        """From the state after so many updates to the next."""
        config, seconds = self.config, {}
        prompts, journals = self.prompts(number), []
        if config.rl.policy_sees_rubric:
            prompts = [with_rubric(prompt) for prompt in prompts]
        if self.replies_to_beat:
            journals.append(self.workdir / "rollouts" / f"{number:06d}-references.jsonl")
            with self._phase("references", seconds, sum(p.reward == PREFERENCE for p in prompts)) as advance:
                prompts = self._with_references(prompts, number, journals[-1], advance)
        journal = self.workdir / "rollouts" / f"{number:06d}.jsonl"
        journals.append(journal)
        count = len(prompts) * self.ppo.samples
        with self._phase("rollout", seconds, count) as advance:
            sampled = rollout(
                self.engine, prompts, self.ppo.samples, self.sampling, (config.seed, number),
                journal=journal, progress=lambda _: advance(),
            )  # fmt: skip
        with self._phase("reward", seconds):
            asked = [prompts[each.prompt] for each in sampled]
            scores, valid, about = self._scores(asked, sampled)
            scores = scores - overlong(sampled, config.rl.max_new_tokens, config.rl.overlong)
            shown = signs(asked, sampled)
            scores = scores - sum(config.rl.guards.get(name, 0.0) * found for name, found in shown.items())
            about |= {f"guards/{name}": float(found.mean()) for name, found in shown.items()}
            learnt = normalised(scores, valid, [prompt.source for prompt in asked]) if config.rl.normalise else scores
        with self._phase("learn", seconds):
            prepared = [self.engine.prepare(Request(prompt.conversation)) for prompt in prompts]
            examples = [to_example(s, prepared[s.prompt]) for s in sampled]
            whole = ppo.Rollout(sampled, examples, np.asarray(learnt, np.float32), valid)
            held = functools.partial(self.keeper.read, state=self.reference) if self.held else None
            metrics = ppo.update(whole, self._scaled(), self.layout, self.policy, self.critic, held)
            if self.moves and self.reference and (number + 1) % config.rl.reference.every == 0:
                now = self.keeper.taken(self.policy.kept())
                self.reference = moved(self.reference, now, config.rl.reference.rate)
            if config.rl.kl.target is not None:
                metrics["kl_scale"] = self.kl_scale
                self.kl_scale = losses.adapted(self.kl_scale, metrics["kl_to_reference"], config.rl.kl.target)
        with self._phase("hand over", seconds):
            self.engine.update(self.policy.model())
        for journal in journals if is_first() else ():
            journal.unlink(missing_ok=True)
        written_tokens = sum(len(each.token_ids) for each in sampled)
        return (
            metrics
            | about
            | about_replies(self.tokenizer, asked, sampled, scores, valid)
            | {f"seconds/{name}": value for name, value in seconds.items()}
            | {"rollout_tokens_per_second": written_tokens / max(seconds["rollout"], 1e-9)}
        )

    def _scores(self, asked: list[Prompt], sampled: list[Sampled]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The first process's: a judge is asked once, and what fails or takes too long does so for all. Only a judge
        whose weights lie on every process is asked by all."""

        def find() -> list[Any]:
            scores, valid, about = self.score(asked, sampled)
            return [np.asarray(scores, np.float32).tolist(), valid.tolist(), about]

        scores, valid, about = find() if getattr(self.score, "by_all", False) else of_first(find)
        return np.array(scores, np.float32), np.array(valid, bool), about

    def _with_references(self, prompts: list[Prompt], number: int, journal: epath.Path, advance) -> list[Prompt]:
        """Preferences are compared with what the reference policy replies."""
        compared = [i for i, prompt in enumerate(prompts) if prompt.reward == PREFERENCE]
        assert self.reference is not None
        self.engine.update(self.policy.model(state=self.policy.taken(self.reference)))
        written = rollout(
            self.engine, [prompts[i] for i in compared], 1, self.sampling, (self.config.seed, number, 1),
            journal=journal, progress=lambda _: advance(),
        )  # fmt: skip
        self.engine.update(self.policy.model())
        made = list(prompts)
        for i, reply in zip(compared, written, strict=True):
            made[i] = dataclasses.replace(prompts[i], truth=reply.answer)
        return made

    def _scaled(self) -> ppo.PPO:
        """With the KL's weights as they are by now."""
        scale = self.kl_scale
        return dataclasses.replace(self.ppo, kl_loss=scale * self.ppo.kl_loss, kl_reward=scale * self.ppo.kl_reward)

    @contextlib.contextmanager
    def _phase(self, name: str, seconds: dict[str, float], count: int = 1) -> Iterator[Callable[[], None]]:
        start = time.monotonic()
        self.progress.update(self.phase_bar, total=count, completed=0, phase=f"  {name}", visible=True)
        yield lambda: self.progress.advance(self.phase_bar)
        self.progress.update(self.phase_bar, visible=False)
        seconds[name] = time.monotonic() - start

    def _tell(self, metrics: dict[str, float]):
        values = {"step": self.done, "seconds": time.monotonic() - self.begun} | metrics
        self.log.log(values)
        about = f"reward {values['reward']:.3f}  think {values['think_tokens']:.0f} tokens"
        self.progress.update(self.bar, completed=self.done, about=about)
        if not self.console.is_terminal:
            self.console.print(
                f"update {self.done}/{self.config.steps}  {about}  {sum(values[f'seconds/{p}'] for p in PHASES):.1f} s",
                highlight=False,
            )

    def _look(self):
        if self.evaluate is None:
            return
        with self.interrupts.breakable():
            scores = self.evaluate(self.engine)
        self.log.log({"step": self.done} | scores)
        if self.saved.path(self.done).exists():
            self.saved.note(self.done, scores)
        self.console.print(f"after {self.done}: " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))

    def _train_state(self, policy: TrainState, critic: TrainState | None, reference: Any) -> tuple:
        """Of a reference that moves the parameters; one that stays is the model that the run begins with."""
        of_critic = critic and (critic.params, critic.opt_state, critic.step)
        return (policy.opt_state, policy.step, of_critic, *((reference,) if self.moves else ()))

    def _save(self):
        policy, critic = self.policy.state, self.critic and self.critic.state
        if self.done and not self.saved.steps() and policy.frozen and not self.lora:
            self.saved.save_frozen(policy.frozen)
        self.saved.save(
            self.done,
            policy.params,
            self._train_state(policy, critic, self.reference and self.reference.params),
            frozen=bool(policy.frozen) and not self.lora,
            about={"kl_scale": self.kl_scale},
            config=written(self.config),
        )

    def _restore(self) -> int:
        """The newest checkpoint's state, if there is one. Returns its number of updates."""
        policy, critic = self.policy.abstract_state(), self.critic and self.critic.abstract_state()
        reference = self.keeper.abstract_state().params
        restored = self.saved.restore(
            policy.params, {} if self.lora else policy.frozen, self._train_state(policy, critic, reference)
        )
        if restored is None:
            return 0
        opt_state, step, of_critic, *of_reference = restored.train
        if of_reference and self.reference is not None:
            self.reference = self.reference._replace(params=of_reference[0])
        self.kl_scale = restored.about["kl_scale"]
        self.policy.state = TrainState(restored.params, self.policy.state.frozen, opt_state, step)
        if self.critic is not None:
            params, *rest = of_critic
            self.critic.state = TrainState(params, self.critic.state.frozen, *rest)
        self.console.print(f"goes on after update {restored.step}")
        return restored.step


CURVES = (
    ("reward", ("reward", "reward/")),
    ("length of replies, tokens", ("think_tokens", "reply_tokens")),
    ("entropy", ("entropy",)),
    ("KL", ("kl_to_reference", "kl_to_old")),
    ("what the judge said, share of the preferences", ("judge/",)),
    ("signs of pleasing the judge, share of the replies", ("guards/",)),
    ("share that was clipped, cut off, or had no reward", ("clip_fraction", "truncated", "without_reward")),
    ("critic", ("critic/loss", "explained_variance")),
    ("seconds by phase", ("seconds/",)),
)


def overlong(sampled: Sequence[Sampled], most: int, options: Config) -> np.ndarray:
    """A penalty that grows over the last `buffer` tokens before the limit up to `weight` (arXiv:2503.14476, §3.4)."""
    if not options.weight:
        return np.zeros(len(sampled), np.float32)
    lengths = np.array([len(each.token_ids) for each in sampled])
    return (options.weight * np.clip((lengths - (most - options.buffer)) / options.buffer, 0, 1)).astype(np.float32)


@jax.jit
def _mixed(one, other, rate):
    return jax.tree.map(lambda a, b: (a + rate * (b - a)).astype(a.dtype), one, other)


def moved(reference: TrainState, policy: TrainState, rate: float) -> TrainState:
    """A reference that has gone this part of the way to the policy; with 1 it is the policy."""
    return policy if rate == 1 else reference._replace(params=_mixed(reference.params, policy.params, rate))


def normalised(scores: np.ndarray, valid: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """Rewards within each source less their mean, by their standard deviation; those that there are count."""
    made = np.zeros(len(scores), np.float64)
    for source in set(sources):
        own = valid & np.array([each == source for each in sources])
        if own.any():
            values = scores[own].astype(np.float64)
            made[own] = (values - values.mean()) / max(values.std(), LEAST_SPREAD)
    return made.astype(np.float32)


def about_replies(
    tokenizer, prompts: Sequence[Prompt], sampled: Sequence[Sampled], scores: np.ndarray, valid: np.ndarray
) -> dict[str, float]:
    """What people look at: rewards by source, lengths, what was cut off, what had no reward."""
    by_source = collections.defaultdict(list)
    for prompt, value, ok in zip(prompts, scores, valid, strict=True):
        if ok:
            by_source[prompt.source].append(float(value))
    thinks = [len(tokenizer.encode(each.think)) for each in sampled]
    means = {f"reward/{name}": float(np.mean(values)) for name, values in sorted(by_source.items())}
    return means | {
        "reward": float(np.mean(scores[valid])) if valid.any() else float("nan"),
        "without_reward": float(np.mean(~valid)),
        "think_tokens": float(np.mean(thinks)),
        "reply_tokens": float(np.mean([len(each.token_ids) for each in sampled])),
        "truncated": float(np.mean([each.truncated for each in sampled])),
    }
