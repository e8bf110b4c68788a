"""Rollouts and their rows: whose tokens are trained, where numbers go, and what an interruption leaves."""

import dataclasses
import json

import numpy as np
import pytest

from stepaudio_jax.inference import Request, SamplingParams
from stepaudio_jax.rl.ppo import PPO
from stepaudio_jax.rl.rollout import Layout, Prompt, pack_rows, rollout, to_example
from stepaudio_jax.text import Conversation, human
from tests.rl import runs

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=5)


@pytest.fixture(scope="module")
def engine():
    return runs.engine_of(runs.learners(critic=False)[0])


@pytest.fixture(scope="module")
def played(engine):
    return rollout(engine, runs.prompts(), 4, SAMPLING, (0, 7))


def test_replies_are_prompt_by_prompt_and_differ(played):
    assert [(each.prompt, each.sample) for each in played] == [(p, s) for p in range(3) for s in range(4)]
    assert len({each.token_ids for each in played}) > 6
    assert all(each.truncated == (len(each.token_ids) == 5 and each.token_ids[-1] not in (0, 1)) for each in played)


def test_a_reply_does_not_depend_on_what_else_is_written(engine, played):
    alone = rollout(engine, runs.prompts(), 1, SAMPLING, (0, 7))
    assert [each.token_ids for each in alone] == [each.token_ids for each in played[::4]]
    other = rollout(engine, runs.prompts(), 1, SAMPLING, (0, 8))
    assert [each.token_ids for each in other] != [each.token_ids for each in alone]


def same(found, expected) -> bool:
    """All but the last bits of the sampler's log-probabilities, which depend on what was computed together."""
    for a, b in zip(found, expected, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
    return [dataclasses.replace(each, log_probs=()) for each in found] == [
        dataclasses.replace(each, log_probs=()) for each in expected
    ]


def test_an_interrupted_rollout_goes_on(engine, played, tmp_path):
    journal, told = tmp_path / "rollout.jsonl", []
    assert same(rollout(engine, runs.prompts(), 4, SAMPLING, (0, 7), journal=journal), played)
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    journal.write_text("".join(lines[:5]) + lines[5][:20])  # killed while it wrote
    again = rollout(engine, runs.prompts(), 4, SAMPLING, (0, 7), journal=journal, progress=told.append)
    assert same(again, played) and len(told) == 12
    assert journal.read_text().startswith("".join(lines[:5])) and len(journal.read_text().splitlines()) == 12
    kept = json.loads(lines[0])
    journal.write_text(json.dumps(kept | {"answer": "believed"}) + "\n")
    changed = rollout(engine, runs.prompts(), 4, SAMPLING, (0, 7), journal=journal)
    assert [each.answer for each in changed].count("believed") == 1


def test_only_what_the_policy_chose_is_trained(engine):
    sampling = dataclasses.replace(SAMPLING, think_budget=2, max_new_tokens=12)
    (sampled,) = rollout(engine, runs.prompts()[:1], 1, sampling, (0,))
    prepared = engine.prepare(Request(runs.prompts()[0].conversation))
    example = to_example(sampled, prepared)
    forced = [p is None for p in sampled.log_probs]
    assert any(forced) and not all(forced)
    reply = example.rendered.loss_mask[-len(forced) :]
    np.testing.assert_array_equal(reply, ~np.array(forced))
    assert not example.rendered.loss_mask[: -len(forced)].any()
    np.testing.assert_array_equal(example.rendered.token_ids[-len(forced) :], sampled.token_ids)


def test_rows_hold_every_sample_once_and_share_sound(engine, played):
    prepared = [engine.prepare(Request(p.conversation)) for p in runs.prompts()]
    examples = [to_example(each, prepared[each.prompt]) for each in played]
    layout = Layout(rows=4, length=64, sound_rows=1, sound_samples=24 * 1280)
    packed = pack_rows(examples, layout)
    assert sorted(i for each in packed for row in each.items for i in row) == list(range(12))
    values = [[100 * i + j for j in range(len(each.token_ids))] for i, each in enumerate(played)]
    for each in packed:
        spread = each.spread(values)
        batch = each.batch
        np.testing.assert_array_equal(spread[:, :-1] > 0, (batch.loss_mask[:, 1:]) & (spread[:, :-1] > 0))
        for row, items in enumerate(each.items):
            for segment, item in enumerate(items, start=1):
                places = np.flatnonzero((batch.segment_ids[row] == segment) & batch.loss_mask[row])
                np.testing.assert_array_equal(batch.tokens[row, places], played[item].token_ids)
                np.testing.assert_array_equal(spread[row, places - 1], values[item])
        np.testing.assert_array_equal(each.segments(range(12)).shape[0], layout.rows)
    (first, *_) = packed
    chunks = {tuple(row[row >= 0][:1]) for row in first.batch.audio.slots}
    assert len(chunks) <= 3, "each prompt's sound is there once"


def test_a_shared_prompt_is_there_once_for_the_replies_in_its_row(engine, played):
    prepared = [engine.prepare(Request(p.conversation)) for p in runs.prompts()]
    examples = [to_example(each, prepared[each.prompt]) for each in played]
    prompts = [(each.prompt, len(prepared[each.prompt].token_ids)) for each in played]
    layout = Layout(rows=2, length=64, sound_rows=1, sound_samples=24 * 1280, share_prompts=True)
    packed = pack_rows(examples, layout, prompts)
    alone = pack_rows(examples, dataclasses.replace(layout, share_prompts=False), prompts)
    assert all(each.batch.groups is None for each in alone)
    filled = [sum(int((each.batch.segment_ids > 0).sum()) for each in packs) for packs in (alone, packed)]
    assert filled[1] < 0.75 * filled[0]
    assert sorted(i for each in packed for row in each.items for i in row) == list(range(12))
    values = [[100 * i + j + 1 for j in range(len(each.token_ids))] for i, each in enumerate(played)]
    for each in packed:
        batch, spread = each.batch, each.spread(values)
        for row, items in enumerate(each.items):
            for segment, (item, end) in enumerate(zip(items, each.ends[row], strict=True), start=1):
                own = np.flatnonzero(batch.segment_ids[row] == segment)
                group = batch.groups[row, own[0]]
                prompt = np.flatnonzero(batch.groups[row] == -group)
                whole = np.concatenate([prompt, own])
                assert own[-1] == end - 1 and group > 0
                np.testing.assert_array_equal(batch.tokens[row, whole], examples[item].rendered.token_ids)
                np.testing.assert_array_equal(batch.positions[row, whole], np.arange(len(whole)))
                np.testing.assert_array_equal(batch.loss_mask[row, whole], examples[item].rendered.loss_mask)
                assert spread[row, whole][-len(values[item]) - 1 : -1].tolist() == values[item]
        assert each.segments(np.arange(12) + 1).shape == (2, batch.segment_ids.max())


def test_a_sample_longer_than_a_row_is_refused(engine, played):
    prepared = engine.prepare(Request(runs.prompts()[0].conversation))
    with pytest.raises(ValueError, match=r"rl\.row_tokens: expected at least"):
        pack_rows([to_example(played[0], prepared)], Layout(4, 8, 1, 24 * 1280))
    with pytest.raises(ValueError, match=r"rl\.sound_units: expected room for the \d+ units"):
        pack_rows([to_example(played[0], prepared)], Layout(4, 64, 1, 2 * 1280))


def test_where_sound_does_not_fit_the_next_batch_begins(engine, played):
    prepared = [engine.prepare(Request(p.conversation)) for p in runs.prompts()]
    examples = [to_example(each, prepared[each.prompt]) for each in played]
    for layout in (Layout(8, 64, 1, 10 * 1280), Layout(8, 64, 2, 12 * 1280), Layout(8, 64, 4, 10 * 1280, shards=2)):
        packed = pack_rows(examples, layout)
        assert len(packed) > 1
        assert sorted(i for each in packed for row in each.items for i in row) == list(range(12))


def test_text_needs_no_sound(engine):
    prompt = Prompt(Conversation((human("Go"),)), "x", "toy", "exact")
    sampled = rollout(engine, [prompt], 2, SAMPLING, (0,))
    prepared = engine.prepare(Request(prompt.conversation))
    (packed,) = pack_rows([to_example(each, prepared) for each in sampled], Layout(2, 64, 0, 1280))
    assert packed.batch.audio is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "best"}, "rl.baseline: expected one of critic, grpo"),
        ({"baseline": "grpo", "samples": 1}, "rl.samples: expected 2 or more"),
        ({"epochs": 0}, "rl.epochs: expected at least 1"),
        ({"critic_minibatches": 0}, "rl.critic_minibatches"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        PPO(**({"samples": 4} | options))
