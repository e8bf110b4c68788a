"""Rewards of sampled replies: by name, pluggable, and scored so that no reward can stop or deceive a run.

with RewardRunner() as runner:
    scored = runner.score(samples, Reward("audio", {"accuracy": "choice"}))
    values, valid = to_arrays(scored)
"""

# The rewards themselves, which register when they are imported.
from stepaudio_jax.rl.rewards import audio, choice, code, exact, maths, number, verdict
from stepaudio_jax.rl.rewards.registry import AnyReward, Reward, accuracy, find, names, note, register, resolve
from stepaudio_jax.rl.rewards.runner import RewardRunner
from stepaudio_jax.rl.rewards.sample import ERROR_KINDS, NOTES, Sample, Scored, to_arrays
from stepaudio_jax.rl.rewards.sandbox import SandboxError
from stepaudio_jax.rl.rewards.summary import Summary, summarise

__all__ = [
    "ERROR_KINDS",
    "NOTES",
    "AnyReward",
    "Reward",
    "RewardRunner",
    "Sample",
    "SandboxError",
    "Scored",
    "Summary",
    "accuracy",
    "audio",
    "choice",
    "code",
    "exact",
    "find",
    "maths",
    "names",
    "note",
    "number",
    "register",
    "resolve",
    "summarise",
    "to_arrays",
    "verdict",
]
