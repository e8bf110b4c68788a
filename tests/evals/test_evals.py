"""Scores and intervals against SciPy-free closed forms; the miniature's examination against a made-up model."""

import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.evals import Item, Score, evaluate
from stepaudio_jax.evals.miniature import (
    controls,
    event_scores,
    held_out_items,
    majority_rates,
    score_answer,
    silenced,
)
from stepaudio_jax.inference import Completion, Finished, Request, Usage
from stepaudio_jax.text import Conversation, human, parse_reply


def completion(request: Request, text: str) -> Completion:
    reply = parse_reply(text)
    usage = Usage(0.0, 0, 1, 1)
    return Completion(request.id, (), (), (), "stop", "", text, reply.think, reply.answer, reply.complete, usage)


def answering(reply):
    """A generator that says `reply(request)`."""

    def generate(requests):
        for request in requests:
            yield Finished(completion(request, reply(request)))

    return generate


def test_wilson_intervals():
    """Against Brown, Cai and DasGupta (2001): 0 of 10 gives 0 to 0.2775, 8 of 10 gives 0.4902 to 0.9433."""
    none, most = Score.of([0] * 10), Score.of([1] * 8 + [0] * 2)
    assert (none.low, none.high) == (pytest.approx(0, abs=1e-9), pytest.approx(0.2775, abs=1e-4))
    assert (most.mean, most.low, most.high) == (0.8, pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_normal_intervals_cover_the_mean():
    rng = np.random.default_rng(0)
    hits = sum(s.low <= 0.5 <= s.high for s in (Score.of(rng.beta(2, 2, 200).tolist()) for _ in range(400)))
    assert 0.92 <= hits / 400 <= 0.98


def test_every_item_is_scored_in_its_group():
    items = [Item(Request(Conversation((human(str(i)),))), i % 3, "even" if i % 2 == 0 else "odd") for i in range(12)]
    generate = answering(
        lambda request: f"</think>{int(request.conversation.turns[0].text) % 3 if len(request.id) else 0}"
    )
    result = evaluate(generate, items, lambda done, truth: float(done.answer == str(truth)) * (truth != 2))
    assert result.overall.n == 12 and result.overall.mean == pytest.approx(8 / 12)
    assert {name: score.n for name, score in result.groups.items()} == {"even": 6, "odd": 6}


def test_a_lost_request_is_an_error():
    items = [Item(Request(Conversation((human("a"),))), None)]
    with pytest.raises(ValueError, match="never answered"):
        evaluate(lambda requests: iter(list(requests)[:0]), items, lambda done, truth: 1.0)


def by_id(items):
    return {item.request.id: item.truth for item in items}


def test_a_perfect_model_scores_one_and_a_deaf_one_the_majority():
    items = held_out_items(30)
    truths = by_id(items)

    def perfect(request):
        question = truths[request.id]
        return f"{question.conversation.turns[-1].think}</think>{question.answer}"

    result = evaluate(answering(perfect), items, score_answer)
    assert result.overall.mean == 1.0 and event_scores(result) == (1.0, 1.0)
    assert all(score.n == 30 for score in result.groups.values()) and len(result.groups) == len(miniature.KINDS)

    common = {"count": "1", "direction": "rising", "order": "tone"}
    deaf = evaluate(answering(lambda r: f"</think>{common.get(truths[r.id].kind, '')}"), silenced(items), score_answer)
    for kind, control in controls(deaf).items():
        assert (abs(control.standard_errors) < 3.5) == (kind in common), kind
    assert event_scores(deaf) == (0.0, 0.0)


def test_an_answer_in_an_open_think_block_is_wrong():
    item = held_out_items(1)[0]
    assert score_answer(completion(item.request, f"the answer is {item.truth.answer}"), item.truth) == 0


def test_silencing_leaves_nothing_but_length():
    items = held_out_items(1)
    for item, mute in zip(items, silenced(items), strict=True):
        (clip,), (silence,) = item.request.conversation.audio, mute.request.conversation.audio
        assert len(clip.samples) == len(silence.samples) and np.any(clip.samples) and not np.any(silence.samples)


def test_held_out_items_repeat_and_answers_are_spread():
    items = held_out_items(100)
    assert [i.truth.answer for i in items] == [i.truth.answer for i in held_out_items(100)]
    assert all(rate <= 0.65 for rate in majority_rates(items).values())
