"""Samples and scores, the reward of audio questions, the registry, and the counts. What is right: tests/scoring."""

import subprocess
import sys

import numpy as np
import pytest

import tests.rl.functions  # noqa: F401  # registers "tests-half"
from stepaudio_jax.inference.types import Completion, Usage
from stepaudio_jax.rl.rewards import (
    Reward,
    Sample,
    Scored,
    find,
    names,
    register,
    registry,
    resolve,
    summarise,
    to_arrays,
)


def sample(answer="", truth="dog", *, think="I hear it.", complete=True, truncated=False, **extra) -> Sample:
    return Sample(think, answer, complete, truncated, truth, extra)


# Samples


@pytest.mark.parametrize("finish, truncated", [("stop", False), ("length", True)])
def test_a_sample_of_a_completion(finish, truncated):
    usage = Usage(0.0, 0, 3, 2)
    completion = Completion("id", (1, 2), (-0.5, None), (False, True), finish, finish, "…", "think", "dog", True, usage)
    made = Sample.of(completion, "dog", {"tolerance": 1})
    assert made == Sample("think", "dog", True, truncated, "dog", {"tolerance": 1})


@pytest.mark.parametrize("name", ["exact", "choice", "number", "maths"])
def test_a_truncated_sample_has_accuracy_0(name):
    right = resolve(name).function
    answer, truth = ("7", "7") if name != "choice" else ("B", "B")
    assert right(sample(answer, truth)) == 1.0
    assert right(sample(answer, truth, truncated=True)) == 0.0


def test_a_score_is_a_value_or_an_error():
    assert Scored(0.0).kind is None and Scored(None, "hung: for long").kind == "hung"
    for value, error in ((None, None), (1.0, "hung: x"), (None, "lazy: x")):
        with pytest.raises(ValueError, match="expected"):
            Scored(value, error)


def test_fractional_rewards_survive_in_float32():
    values, valid = to_arrays([Scored(0.8), Scored(None, "died: x"), Scored(0.2), Scored(0.0)])
    assert values.dtype == np.float32 and values[0] == np.float32(0.8) and values[2] == np.float32(0.2)
    assert valid.tolist() == [True, False, True, True]
    assert to_arrays([])[0].shape == (0,)


# Audio


@pytest.mark.parametrize(
    "answer, think, complete, truncated, value",
    [
        ("dog", "I hear barks.", True, False, 1.0),
        ("dog", " \n\t", True, False, 0.8),
        ("dog", "\u200b\u2060", True, False, 0.8),  # nothing that can be seen
        ("dog", "", True, False, 0.8),
        ("cat", "I hear barks.", True, False, 0.2),
        ("cat", "", True, False, 0.0),
        ("", "I hear ba", False, True, 0.0),
        ("dog", "I hear barks.", True, True, 0.2),
        ("dog", "I hear barks.", False, False, 0.8),
    ],
)
def test_audio(answer, think, complete, truncated, value):
    reward = resolve(Reward("audio", {"accuracy": "exact"})).function
    got = reward(sample(answer, think=think, complete=complete, truncated=truncated))
    assert np.float32(got) == np.float32(value)


def test_audio_around_any_reward_with_any_weights():
    configured = {"name": "audio", "accuracy": {"name": "number"}, "accuracy_weight": 3, "reasoning_weight": 0.5}
    assert resolve(configured).function(sample("7", "7")) == 3.5
    assert resolve(Reward("audio", {"accuracy": "tests.rl.functions:half"})).function(sample()) == 0.8 * 0.5 + 0.2
    assert resolve(Reward("audio", {"accuracy": "exact"})).cheap
    assert not resolve(Reward("audio", {"accuracy": "maths"})).cheap
    assert Reward("audio", {"accuracy": Reward("audio", {"accuracy": "exact"})}).label == "audio(audio(exact))"


# The registry


def test_names():
    assert {"audio", "choice", "code", "exact", "maths", "number"} <= set(names())
    assert find("tests.rl.functions:half") is find("tests-half")
    assert find("exact").address == "stepaudio_jax.rl.rewards.exact:exact"
    assert find("math:sqrt").name == "math:sqrt"


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("exakt", 'found "exakt"; did you mean "exact"?'),
        ("tests.rl.functions:hal", 'tests.rl.functions has no hal; did you mean "half"?'),
        ("tests.rl.nowhere:half", "module tests.rl.nowhere cannot be imported"),
        ("math:pi", "expected a function, found float"),
        ("math:", "has no name"),
        (":f", "cannot be imported"),
        (Reward("exact", {"tolerance": 1}), 'reward "exact": options: .*tolerance'),
        (Reward("audio"), 'reward "audio": options: .*accuracy'),
        (Reward("exact", seconds=0), "seconds: expected more than 0, found 0"),
        ({"accuracy": "exact"}, 'expected a "name" among its keys, found accuracy'),
        ("code", r"expected allow_code=True \(RewardRunner\), found False"),
        (Reward("audio", {"accuracy": "code"}), "expected allow_code=True"),
        (Reward("code", {"allow_code": True}), "expected allow_code=True"),  # a config's word is not the operator's
    ],
)
def test_what_cannot_be_resolved(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        resolve(name)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="a name without a colon"):
        register("a:b")
    with pytest.raises(ValueError, match=r"is stepaudio_jax[.]rl[.]rewards[.]exact:exact already"):
        register("exact")(sample)
    with pytest.raises(ValueError, match="which no import reaches"):
        register("local")(lambda sample: 0.0)
    assert "local" not in names()


def test_a_reward_of_the_program_itself_is_not_for_workers(monkeypatch):
    monkeypatch.setattr(registry, "_entries", {})
    monkeypatch.setattr(sample, "__module__", "__main__")
    register("own")(sample)
    with pytest.raises(ValueError, match='reward "own": is defined in the program itself'):
        resolve("own")
    registry._entries.clear()
    register("own", cheap=True)(sample)
    assert resolve("own").cheap


# Counts


def test_the_summary_counts_values_and_errors_by_reward_and_source():
    scored = [Scored(1.0), Scored(0.0), Scored(None, "hung: x"), Scored(None, "hung: y"), Scored(0.2), Scored(1.0)]
    audio = Reward("audio", {"accuracy": "exact"})
    found = summarise(scored, ["exact", "exact", "exact", "exact", audio, audio], ["a", "a", "a", "b", "a", "a"])
    assert [(each.reward, each.source, each.n, each.errors) for each in found] == [
        ("audio(exact)", "a", 2, {}),
        ("exact", "a", 3, {"hung": 1}),
        ("exact", "b", 1, {"hung": 1}),
    ]
    assert found[0].mean == 0.6 and found[1].mean == 0.5 and np.isnan(found[2].mean)
    assert summarise([], "exact") == []
    with pytest.raises(ValueError, match="sources: expected one for all or one for each of 6 samples, found 1"):
        summarise(scored, "exact", ["a"])


# What a worker process pays for


def test_the_rewards_import_neither_jax_nor_numpy():
    program = "import stepaudio_jax.rl.rewards.worker, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert not set(done.stdout.split()) & {"jax", "jaxlib", "flax", "numpy", "sympy", "math_verify"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("bright", True), ("The tone is bright, Anna.", True), ("Pure or bright.", False), ("", False)],
)
def test_an_answer_that_is_named_in_whatever_words(answer, right):
    assert find("named").function(Sample("", answer, True, False, "bright", {"kind": "timbre"})) == right
    with pytest.raises(ValueError, match="kind: expected one of timbre"):
        find("named").function(Sample("", answer, True, False, "bright", {"kind": "dialogue"}))
