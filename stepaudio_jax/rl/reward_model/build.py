"""The reward model that a config names."""

from __future__ import annotations

import jax
from etils import epath

from stepaudio_jax import checkpoints
from stepaudio_jax.inference import EngineOptions
from stepaudio_jax.judges import EndpointOptions, make_judge
from stepaudio_jax.rl.reward_model.compare import Compares, RewardModel
from stepaudio_jax.rl.reward_model.points import ByPoints
from stepaudio_jax.rl.reward_model.rules import ByRule, of_the_miniature
from stepaudio_jax.training.configs import Config

JUDGES = ("checkpoint", "endpoint", "replay", "miniature")
SCALES = ("whole", "points")
REFERENCES = ("record", "reference")


def make_reward_model(config: Config, workdir: epath.PathLike) -> Compares:
    """By a config's section `reward_model` (configs/common.py).

    The judge's replies are kept in WORKDIR/judge.jsonl, unless it is a rule: an update that is done again asks nothing
    again, and a run that replays the file has the same rewards.

    Raises:
      ValueError: a field that cannot be used.
    """
    options = config.reward_model
    for name, known in (("judge", JUDGES), ("scale", SCALES), ("references", REFERENCES)):
        if options[name] not in known:
            raise ValueError(f'reward_model.{name}: expected one of {", ".join(known)}, found "{options[name]}"')
    values = tuple(map(float, options["values"]))  # a method of a ConfigDict has the same name
    if options.judge == "miniature":
        return ByRule(of_the_miniature, values)
    if not options.at:
        raise ValueError(f'reward_model.at: expected a path or an address of the judge "{options.judge}", found none')
    where = {"checkpoint": "checkpoint", "endpoint": "url", "replay": "replay"}[options.judge]
    engine = None
    if options.judge == "checkpoint":
        positions = checkpoints.read_config(options.at).decoder.max_position_embeddings
        engine = EngineOptions(max_rows=options.max_rows, max_length=min(options.max_length, positions))
    judge = make_judge(
        **{where: options.at},
        model=options.model,
        record=None if options.judge == "replay" else epath.Path(workdir) / "judge.jsonl",
        options=EndpointOptions(
            at_once=options.at_once, most_requests=options.most_requests, most_tokens=options.most_tokens
        ),
        engine=engine,
        mesh=dict(config.mesh) if jax.process_count() > 1 else None,
    )
    asked = {"sound": options.sound, "max_new_tokens": options.max_new_tokens}
    whole = RewardModel(judge, values=values, **asked)
    return ByPoints(judge, whole, **asked) if options.scale == "points" else whole


def judged_by_all(config: Config) -> bool:
    """Whether every process has to take part in judging: the judge's weights lie on all of them."""
    return "reward_model" in config and config.reward_model.judge == "checkpoint" and jax.process_count() > 1
