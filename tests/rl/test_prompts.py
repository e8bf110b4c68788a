"""Prompts from stored data sets: by weight, every record once a pass, with what is true taken from where it stands."""

import collections
import dataclasses

import ml_collections
import numpy as np
import pytest

from configs import common
from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.data.build import write_samples
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.samples import Sample
from stepaudio_jax.rl.prompts import Prompts, sources_of
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.text import Conversation, assistant, human

RECIPE = Recipe(str(checkpoints.locate("tiny")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Scenes with their answers in a column, and sums without one."""
    folder, rng = tmp_path_factory.mktemp("prompts"), np.random.default_rng(0)
    scenes = [miniature.make_question(rng, "direction") for _ in range(7)]
    heard = [dataclasses.replace(q.conversation, extra={"truth": q.answer, "number": i}) for i, q in enumerate(scenes)]
    sums = [Conversation((human(f"What is {i} + 1?"), assistant(f"{i + 1}", think="Sum."))) for i in range(5)]
    for name, made in (("heard", heard), ("sums", sums)):
        write_samples(folder / name, [Sample(each, where=name) for each in made], RECIPE)
    return folder


def config(folders, **changed):
    made = ml_collections.ConfigDict({"seed": 0, "rl": {"prompts": 10}, "prompts": {"kept": ""}})
    heard = {"weight": 2.0, "reward": "audio", "accuracy": "exact", "truth": "truth"}
    sums = {"weight": 1.0, "reward": "number", "accuracy": "", "truth": ""}
    made.prompts.sources = {
        name: {"path": str(folders / name)} | values | changed.get(name, {})
        for name, values in (("heard", heard), ("sums", sums))
    }
    return made


def test_what_a_prompt_is(folders):
    prompts = Prompts(config(folders))
    found = [prompt for update in range(9) for prompt in prompts(update)]
    heard = [prompt for prompt in found if prompt.source == "heard"]
    sums = [prompt for prompt in found if prompt.source == "sums"]
    assert heard[0].conversation.audio and heard[0].truth in miniature.scenes.DIRECTIONS
    assert heard[0].reward == Reward("audio", {"accuracy": "exact"}) and "number" in heard[0].extra
    assert sums[0].reward == "number" and sums[0].conversation.turns[-1].role == "human"
    assert all(int(prompt.truth) == int(prompt.conversation.turns[0].text.split()[2]) + 1 for prompt in sums)
    assert 2 * len(sums) == pytest.approx(len(heard), abs=15)


def test_every_record_once_in_a_pass_each_in_another_order(folders):
    prompts = Prompts(config(folders))
    numbers = [p.extra["number"] for update in range(9) for p in prompts(update) if p.source == "heard"]
    passes = [numbers[at : at + 7] for at in range(0, len(numbers) - 6, 7)]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert len({tuple(each) for each in passes}) > len(passes) // 2
    again = [p.extra["number"] for p in Prompts(config(folders))(3) if p.source == "heard"]
    assert again == [p.extra["number"] for p in prompts(3) if p.source == "heard"]


def test_the_small_world_beside_stored_data(folders):
    both = config(folders)
    both.prompts.miniature = common.small_world()
    drawn = collections.Counter(prompt.source for update in range(6) for prompt in Prompts(both)(update))
    assert drawn["heard"] > drawn["sums"] > 0 and drawn.keys() & set(miniature.KINDS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sums": {"truth": "answer"}}, "expected a column answer, found none"),
        ({"heard": {"truth": "answer"}}, "expected a column answer, found truth, number"),
        ({"sums": {"weight": 0.0}}, "expected weights above 0"),
    ],
)
def test_what_cannot_be_used_is_named(folders, changed, message):
    with pytest.raises(ValueError, match=message):
        for update in range(5):
            Prompts(config(folders, **changed))(update)


def test_neither_is_refused():
    with pytest.raises(ValueError, match="expected a section miniature or dialogues, or data sets in sources"):
        sources_of(ml_collections.ConfigDict({"prompts": {"sources": {}, "kept": ""}}))
