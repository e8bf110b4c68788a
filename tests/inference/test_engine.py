"""The engine against the plainest possible loop: run the whole sequence again for every token."""

import functools

import jax
import numpy as np
import pytest

from stepaudio_jax.data import collate, encode
from stepaudio_jax.inference import (
    AudioProgress,
    Engine,
    EngineOptions,
    Finished,
    PromptError,
    Request,
    SamplingParams,
    TextDelta,
)
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests import small

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=40)


@functools.cache
def model():
    """Random weights, but for the end tokens, whose logits are 0: no greedy reply ends of itself."""
    made = small.model()
    made.decoder.lm_head.set_value(made.decoder.lm_head[...].at[:2].set(0.0))
    return made


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(model(), small.tokenizer(), EngineOptions(max_rows=4, burst=8))


def question(text: str, *seconds: float) -> Conversation:
    return Conversation((human(*[Audio(small.sound(s, i)) for i, s in enumerate(seconds)], text),))


@functools.cache
def _logits():
    return jax.jit(lambda batch: model()(batch.tokens, batch.positions, batch.segment_ids, batch.audio))


def next_log_probs(conversation: Conversation, written: list[int], temperature: float = 1.0, **options) -> np.ndarray:
    """log softmax over the tokenizer's entries of the token after prompt and `written`, by one whole forward pass."""
    example = encode(conversation, small.tokenizer(), generate=True, **options)
    data = collate([[example]], length=192, sound_rows=2, sound_samples=33_280)
    size = example.num_tokens
    data.tokens[0, size : size + len(written)] = written
    data.segment_ids[0, : size + len(written)] = 1
    data.positions[0] = np.arange(192)
    logits = np.asarray(_logits()(data), np.float64)[0, size + len(written) - 1, : small.tokenizer().vocab_size]
    logits /= temperature
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def finished(engine: Engine, *requests: Request):
    done = {e.request_id: e.completion for e in engine.generate(requests) if isinstance(e, Finished)}
    assert len(done) == len(requests)
    return [done[request.id] for request in requests]


def test_greedy_tokens_and_log_probs_are_those_of_whole_forward_passes(engine):
    requests = [
        Request(question("What is it?", 0.5), GREEDY),
        Request(question("How many tones do you hear?", 0.4, 1.1), GREEDY),
        Request(question("Hello there"), GREEDY),
        Request(question("And now?", 1.6, 1.6), GREEDY),  # a piece of the prompt ends within the second sound
    ]
    for request, done in zip(requests, finished(engine, *requests), strict=True):
        written: list[int] = []
        for token, log_prob in zip(done.token_ids, done.log_probs, strict=True):
            expected = next_log_probs(request.conversation, written)
            assert expected[token] >= expected.max() - 1e-4
            assert log_prob == pytest.approx(expected[token], abs=2e-4)
            written.append(token)
        assert done.usage.completion_tokens == len(written) <= 40
        assert done.finish_reason == ("stop" if written[-1] in (0, 1) else "length")


def test_neighbours_in_the_batch_change_nothing(engine):
    sampling = SamplingParams(temperature=1.0, max_new_tokens=24, seed=7)
    request = Request(question("What is it?", 0.5), sampling)
    alone = finished(engine, request)[0].token_ids
    crowd = [Request(question(f"And {i}?", 0.3), SamplingParams(temperature=1.0, max_new_tokens=9)) for i in range(3)]
    assert finished(engine, crowd[0], request, *crowd[1:])[1].token_ids == alone


def test_a_seed_repeats_and_another_does_not(engine):
    def tokens(seed):
        return finished(
            engine, Request(question("What is it?"), SamplingParams(temperature=1.0, max_new_tokens=24, seed=seed))
        )[0].token_ids

    assert tokens(1) == tokens(1) != tokens(2)


def test_log_probs_are_of_the_models_distribution_at_the_temperature(engine):
    sampling = SamplingParams(temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=1.3, max_new_tokens=8)
    request = Request(question("What is it?"), sampling)
    done = finished(engine, request)[0]
    for i, (token, log_prob) in enumerate(zip(done.token_ids, done.log_probs, strict=True)):
        expected = next_log_probs(request.conversation, list(done.token_ids[:i]), temperature=0.5)
        assert log_prob == pytest.approx(expected[token], abs=5e-4)


def test_a_second_prompt_of_a_bucket_compiles_nothing(engine):
    finished(engine, Request(question("What is it?", 0.5), GREEDY))
    before = engine.programs.compilations
    finished(engine, Request(question("Which tone was higher, the first or the second?", 0.9), GREEDY))
    assert engine.programs.compilations == before


def test_the_think_budget_closes_the_block(engine):
    def run(budget, tokens=40):
        sampling = SamplingParams(temperature=0.0, max_new_tokens=tokens, think_budget=budget)
        return finished(engine, Request(question("What is it?"), sampling))[0]

    free = run(None)
    assert not any(free.forced)
    closing = small.tokenizer().encode("\n</think>\n")
    for budget in (0, 1, 5, 8, 11):  # within, at the end of, and across bursts of 8
        done = run(budget)
        assert done.complete
        assert done.token_ids[:budget] == free.token_ids[:budget]
        assert list(done.token_ids[budget : budget + len(closing)]) == closing
        assert done.forced == tuple(budget <= i < budget + len(closing) for i in range(len(done.token_ids)))
        assert [p is None for p in done.log_probs] == list(done.forced)
        after = budget + len(closing)
        expected = next_log_probs(question("What is it?"), list(done.token_ids[:after]))
        assert expected[done.token_ids[after]] >= expected.max() - 1e-4


def test_stop_strings_cut_the_text_and_are_never_streamed(engine):
    whole = finished(engine, Request(question("What is it?"), GREEDY))[0]
    stop = whole.text[8:12]
    request = Request(question("What is it?"), SamplingParams(temperature=0.0, max_new_tokens=40, stop=("@@", stop)))
    pieces, done = [], None
    for event in engine.generate([request]):
        if isinstance(event, TextDelta):
            pieces.append(event.text)
        elif isinstance(event, Finished):
            done = event.completion
    assert done is not None and done.finish_reason == "stop" and done.stop_reason == stop
    assert done.text == whole.text[: whole.text.index(stop)]
    assert "".join(pieces) == done.text
    assert done.token_ids == whole.token_ids[: len(done.token_ids)] and len(done.token_ids) < len(whole.token_ids)


def test_stop_ids_end_the_reply(engine):
    whole = finished(engine, Request(question("What is it?"), GREEDY))[0]
    token = whole.token_ids[5]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=40, stop_token_ids=(token,))
    done = finished(engine, Request(question("What is it?"), sampling))[0]
    assert done.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert done.finish_reason == "stop"


def test_the_cache_grows_without_changing_tokens():
    """More tokens than the first cache has slots, beside whole forward passes at the end."""
    engine = Engine(small.model(), small.tokenizer(), EngineOptions(burst=32))
    sampling = SamplingParams(temperature=1.0, max_new_tokens=300, seed=3, stop_token_ids=())
    request = Request(question("Go on and on"), sampling)
    done = finished(engine, request)[0]
    if done.finish_reason == "length":
        assert len(done.token_ids) == 300
    example = encode(request.conversation, small.tokenizer(), generate=True)
    assert example.num_tokens + len(done.token_ids) <= 512


def test_a_reply_ends_where_the_models_positions_end():
    engine = Engine(small.model(max_position_embeddings=64), small.tokenizer())
    sampling = SamplingParams(temperature=1.0, max_new_tokens=300, seed=1)
    done = finished(engine, Request(question("Go on"), sampling))[0]
    assert done.usage.prompt_tokens + len(done.token_ids) <= 64
    if done.finish_reason == "length":
        assert done.usage.prompt_tokens + len(done.token_ids) == 64


def test_a_prompt_longer_than_the_positions_is_refused():
    engine = Engine(small.model(max_position_embeddings=32), small.tokenizer())
    with pytest.raises(PromptError, match=r"the prompt has \d+ tokens, 25 of them audio \(2 s\).*room for 32 "):
        list(engine.generate([Request(question("What?", 2.0))]))


def test_an_open_assistant_turn_is_continued(engine):
    conversation = Conversation((human("1+1?"), assistant("<think>\nEasy.\n</think>\nIt", complete=False)))
    done = finished(engine, Request(conversation, SamplingParams(temperature=0.0, max_new_tokens=6)))[0]
    assert done.complete and done.think == ""
    expected = next_log_probs(conversation, [])
    assert expected[done.token_ids[0]] >= expected.max() - 1e-4


def test_without_thinking_everything_is_answer(engine):
    done = finished(engine, Request(question("Hi"), GREEDY, thinking=False))[0]
    assert done.complete and done.think == ""
    expected = next_log_probs(question("Hi"), [], thinking=False)
    assert expected[done.token_ids[0]] >= expected.max() - 1e-4


def test_progress_is_told_over_the_chunks_of_long_audio():
    engine = Engine(small.model(max_position_embeddings=2048), small.tokenizer())
    request = Request(question("What?", 60.0), SamplingParams(temperature=0.0, max_new_tokens=2))
    events = list(engine.generate([request]))
    told = [event for event in events if isinstance(event, AudioProgress)]
    assert [event.total for event in told] == [3] * len(told) and told[-1].done == 3
    assert events[-1].completion.usage.audio_seconds == 60.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ("",)}, "stop"),
        ({"seed": -1}, "seed"),
    ],
)
def test_sampling_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)
