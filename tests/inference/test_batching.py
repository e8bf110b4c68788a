"""Many requests at once: whatever comes, goes, shares and gives way, each gets the tokens it would get alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from stepaudio_jax.inference import (
    Engine,
    EngineOptions,
    Finished,
    PromptError,
    QueueFull,
    Request,
    SamplingParams,
    TextDelta,
)
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests import small
from tests.inference import plain

LENGTH = 160


@functools.cache
def model(seed: int = 0):
    """Replies of many different tokens, which end of themselves now and then."""
    return small.model(seed, scale=2.0, max_position_embeddings=LENGTH)


def options(**values) -> EngineOptions:
    sizes = {"max_rows": 8, "page_size": 4, "pages": 256, "prefill_tokens": 64, "burst": 4, "sounds": 8}
    return EngineOptions(**sizes | values)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(model(), small.tokenizer(), options())


@functools.cache
def clip(seconds: float, seed: int) -> Audio:
    return Audio(small.sound(seconds, seed))


def request(number: int, rng: np.random.Generator, **values) -> Request:
    """A question of a few words, about none to two of six sounds; greedy, or sampled in one of many ways."""
    clips = [clip(0.3 + 0.2 * i, i) for i in rng.choice(6, rng.integers(0, 3), replace=False)]
    words = " ".join(rng.choice(["what", "is", "it", "how", "many", "tones", "low", "loud"], rng.integers(1, 12)))
    sampling = SamplingParams(
        temperature=float(rng.choice([0.0, 0.0, 0.7, 1.2])),
        top_k=int(rng.choice([0, 0, 20])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
        max_new_tokens=int(rng.integers(1, 28)),
        seed=number,
    )
    return Request(Conversation((human(*clips, words),)), sampling, id=f"r{number}", **values)


def finished(engine: Engine, *requests: Request):
    done = {e.request_id: e.completion for e in engine.generate(requests) if isinstance(e, Finished)}
    return [done[request.id] for request in requests]


@pytest.mark.parametrize("count", [64, pytest.param(200, marks=pytest.mark.slow)])
def test_requests_that_come_and_go_with_too_few_pages(count):
    """Arrivals at random, every eighth cancelled at random, pages for a third of the rows: all that finish have the
    tokens and log-probabilities of whole forward passes, and every page comes back."""
    rng = np.random.default_rng(0)
    requests = [request(i, rng) for i in range(count)]
    truth = plain.write(model(), small.tokenizer(), requests, length=LENGTH, sound=24_320)
    engine = Engine(model(), small.tokenizer(), options(pages=44))
    cancelled = {f"r{i}" for i in rng.choice(count, count // 8, replace=False)}
    when = {name: int(rng.integers(1, 5)) for name in cancelled}
    done, coming, known = {}, [requests[i] for i in rng.permutation(count)], {}
    while coming or engine.has_work:
        for _ in range(min(rng.integers(0, 4), len(coming))):
            one = coming.pop()
            engine.add(one)
            known[one.id] = 0
        for event in engine.step():
            assert event.request_id in known
            if isinstance(event, Finished):
                done[event.request_id] = event.completion
        for name in list(known):
            known[name] += 1
            if name in cancelled and known[name] == when[name] and name not in done:
                engine.cancel(name)
                del known[name]
    stats = engine.stats()
    assert stats.pages_used == stats.running == stats.waiting == 0 and stats.interruptions > count / 20
    assert {f"r{i}" for i in range(count)} - set(done) <= cancelled and len(done) >= count * 7 // 8
    for one, (tokens, log_probs) in zip(requests, truth, strict=True):
        if one.id in done:
            assert list(done[one.id].token_ids) == tokens, one.id
            np.testing.assert_allclose(done[one.id].log_probs, log_probs, atol=1e-4)


def test_samples_of_one_prompt_share_its_pages(engine):
    """Sixteen at once: the prompt is computed once, but for what lies after its last full page."""
    prompt = Conversation((human(clip(1.3, 9), "what is it, and how loud, and how many of them are there?"),))
    before = engine.stats()
    requests = [Request(prompt, SamplingParams(1.0, max_new_tokens=12, seed=i), id=f"s{i}") for i in range(16)]
    replies = finished(engine, *requests)
    after, size = engine.stats(), replies[0].usage.prompt_tokens
    assert after.cached_prompt_tokens - before.cached_prompt_tokens == 15 * ((size - 1) // 4 * 4)
    assert after.sounds_encoded - before.sounds_encoded == 1
    assert len({reply.token_ids for reply in replies}) > 8
    assert replies[-1].usage.cached_tokens == (size - 1) // 4 * 4
    truth = plain.write(model(), small.tokenizer(), requests, length=LENGTH, sound=24_320)
    assert [list(reply.token_ids) for reply in replies] == [tokens for tokens, _ in truth]


@pytest.mark.parametrize("size", [9, 10, 11, 12, 13])
def test_samples_of_one_prompt_begin_together(size):
    """Whatever its length in pages of 4: none waits until the one that computes their prompt has written its reply."""
    engine = Engine(model(), small.tokenizer(), options(prefill_tokens=256))
    sampling = [SamplingParams(1.0, max_new_tokens=8, seed=seed) for seed in range(engine.options.max_rows)]
    begin = engine.tokenizer.begin_of_turn
    ids = (begin, *range(20 + size, 19 + 2 * size))
    for number, each in enumerate(sampling):
        engine.add(Request(token_ids=ids, sampling=each, id=f"s{number}"))
    before = engine.stats()
    engine.step()
    after = engine.stats()
    wrote = {row.length - size for row in engine.scheduler.running}
    assert after.waiting == 0 and 0 not in wrote and len(ids) == size
    assert after.cached_prompt_tokens - before.cached_prompt_tokens == (len(sampling) - 1) * ((size - 1) // 4 * 4)


def test_the_next_turn_of_a_dialogue_finds_the_last_ones_pages(engine):
    first = Conversation((human(clip(1.0, 4), "what is it?"),))
    reply = finished(engine, Request(first, SamplingParams(0.0, max_new_tokens=20), thinking=False))[0]
    turns = (*first.turns, assistant(reply.text), human("and now?"))
    second = Request(Conversation(turns), SamplingParams(0.0, max_new_tokens=4), keep_think=True)
    following = finished(engine, second)[0]
    ids = engine.prepare(second).token_ids.tolist()
    before = [*engine.prepare(Request(first, thinking=False)).token_ids.tolist(), *reply.token_ids]
    common = next(i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b)
    assert common >= reply.usage.prompt_tokens and following.usage.cached_tokens == common // 4 * 4


def test_equal_ids_of_different_sounds_share_nothing(engine):
    def ask(seed):
        return Request(Conversation((human(clip(0.8, seed), "what?"),)), SamplingParams(0.0, max_new_tokens=6))

    first = finished(engine, ask(20))[0]
    other = finished(engine, ask(21))[0]
    assert other.usage.prompt_tokens == first.usage.prompt_tokens and other.usage.cached_tokens <= 4


def test_a_long_prompt_holds_up_nobody():
    """Between two pieces of the long one, the short one gets tokens."""
    engine = Engine(small.model(scale=2.0, max_position_embeddings=512), small.tokenizer(), options(prefill_tokens=16))
    engine.add(Request(Conversation((human("hi"),)), SamplingParams(1.0, max_new_tokens=60), id="short"))
    engine.step()
    long = Request(Conversation((human(clip(9.9, 3), clip(8.8, 4), "what?"),)), SamplingParams(0.0, max_new_tokens=2))
    engine.add(long)
    row = None
    while row is None or not row.decodes:
        before = engine.stats().generated_tokens
        engine.step()
        row = next(row for row in engine.scheduler.running if row.id == long.id)
        if row.computed < row.length - 1:
            assert row.computed % 16 == 0
            assert engine.stats().generated_tokens > before
        if not any(r.id == "short" for r in engine.scheduler.running):
            break
    assert row.computed >= 64


def test_warming_up_compiles_everything_there_is():
    engine = Engine(model(), small.tokenizer(), options(max_rows=2))
    told = []
    jax.clear_caches()  # another engine of this structure may have compiled some
    before = engine.programs.compilations
    engine.warm_up(lambda done, total, what: told.append((done, total, what)))
    assert [done for done, *_ in told] == list(range(len(told))) and told[-1][1] == len(told) - 1
    compiled = engine.programs.compilations
    assert compiled - before == len(told) - 1
    rng = np.random.default_rng(5)
    finished(engine, *[request(i, rng) for i in range(12)])
    assert engine.programs.compilations == compiled
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("rows", [1, 8])
def test_the_cache_is_written_in_place(rows):
    """A burst needs less memory beside its arguments than the cache takes: nothing of it is copied."""
    engine = Engine(model(), small.tokenizer(), options(pages=4096))
    memory, programs = engine.memory, engine.programs
    arguments = programs.state, memory.pages, None, memory.seen, engine.replies.arrays({}, rows, 0), np.int32(1)
    found = programs.functions.decode.lower(*arguments).compile().memory_analysis()
    assert found.temp_size_in_bytes < memory.pages.nbytes / 2
    assert found.alias_size_in_bytes >= memory.pages.nbytes


def test_priority_then_owners_in_turn_then_arrival():
    engine = Engine(model(), small.tokenizer(), options(max_rows=1))
    short = SamplingParams(0.0, max_new_tokens=1)

    def ask(name, **values):
        engine.add(Request(Conversation((human(name),)), short, id=name, **values))

    ask("a1", owner="a")
    ask("a2", owner="a")
    ask("a3", owner="a")
    ask("b1", owner="b")
    ask("urgent", owner="c", priority=-1)
    order = []
    while engine.has_work:
        order += [event.request_id for event in engine.step() if isinstance(event, Finished)]
    assert order == ["urgent", "a1", "b1", "a2", "a3"]


def test_other_weights_are_taken_in_the_midst_of_a_reply():
    """After `update`, what is written next is the new model's, given all that came before; sounds are heard anew."""
    engine, other = (Engine(model(), small.tokenizer(), options(burst=1)) for _ in range(2))
    greedy = SamplingParams(0.0, max_new_tokens=12)
    heard = Request(Conversation((human(clip(0.9, 7), "what?"),)), greedy)
    old = finished(engine, heard)[0]
    prompt = Request(Conversation((human("how many?"),)), SamplingParams(0.0, max_new_tokens=20))
    engine.add(prompt)
    for _ in range(4):
        engine.step()
    written = list(engine.scheduler.running[0].writer.token_ids)
    assert len(written) == 4
    for one in (engine, other):
        one.update(model(1))
    done = next(e.completion for e in iter_events(engine) if isinstance(e, Finished))
    assert list(done.token_ids[: len(written)]) == written and engine.stats().interruptions == 1
    given = (*other.prepare(prompt).token_ids.tolist(), *written)
    rest = dataclasses.replace(prompt.sampling, max_new_tokens=20 - len(written))
    assert finished(other, Request(token_ids=given, sampling=rest))[0].token_ids == done.token_ids[len(written) :]
    new = finished(engine, heard)[0]
    assert new.token_ids == finished(other, heard)[0].token_ids != old.token_ids


def iter_events(engine: Engine):
    while engine.has_work:
        yield from engine.step()


def test_weights_of_another_model_are_refused(engine):
    with pytest.raises(ValueError, match="weights: expected those of the same model"):
        engine.update(small.model(intermediate_size=64))


def test_a_prompt_of_ids_is_the_same_prompt(engine):
    asked = Request(Conversation((human("how many?"),)), SamplingParams(0.0, max_new_tokens=8))
    ids = tuple(engine.prepare(asked).token_ids.tolist())
    expected = finished(engine, asked)[0]
    done = finished(engine, Request(token_ids=ids, sampling=asked.sampling))[0]
    assert done.token_ids == expected.token_ids and done.usage.prompt_tokens == len(ids)
    with pytest.raises(PromptError, match="token_ids: expected 0 to 511, found"):
        engine.prepare(Request(token_ids=(1, 512)))


def test_the_likeliest_tokens_are_told(engine):
    sampling = SamplingParams(1.0, max_new_tokens=9, seed=3, top_log_probs=5)
    events = list(engine.generate([Request(Conversation((human("how many?"),)), sampling)]))
    done = events[-1].completion
    assert [len(top) for top in done.top_log_probs] == [5] * len(done.token_ids)
    for token, log_prob, top in zip(done.token_ids, done.log_probs, done.top_log_probs, strict=True):
        values = [value for _, value in top]
        assert values == sorted(values, reverse=True) and log_prob <= values[0] + 1e-6
        if token in dict(top):
            assert dict(top)[token] == pytest.approx(log_prob, abs=1e-6)
    told = [score.token_id for e in events if isinstance(e, TextDelta) for score in e.tokens]
    assert told == list(done.token_ids[: len(told)]) and len(told) >= len(done.token_ids) - 1


def test_a_full_queue_and_a_repeated_id_are_refused():
    engine = Engine(model(), small.tokenizer(), options(max_rows=1, max_waiting=2))
    one = Request(Conversation((human("a"),)), SamplingParams(0.0, max_new_tokens=1), id="x")
    engine.add(one)
    with pytest.raises(ValueError, match="id: a request x is being answered already"):
        engine.add(one)
    engine.add(dataclasses.replace(one, id="y"))
    with pytest.raises(QueueFull, match="2 requests wait already"):
        engine.add(dataclasses.replace(one, id="z"))


def test_a_prompt_larger_than_all_pages_is_refused():
    engine = Engine(model(), small.tokenizer(), options(pages=5))
    with pytest.raises(PromptError, match=r"there is room for 20 \(160 positions, 5 pages of 4 tokens\)"):
        engine.prepare(Request(Conversation((human("what is it, and how loud is it, and how many times?"),))))


def test_leaving_early_frees_everything(engine):
    rng = np.random.default_rng(3)
    for _ in engine.generate([request(i, rng) for i in range(6)]):
        break
    assert not engine.has_work and engine.stats().pages_used == 0


def test_a_cancelled_request_is_heard_of_no_more(engine):
    prompt = Conversation((human("what?"),))
    engine.add(Request(prompt, SamplingParams(1.0, max_new_tokens=40), id="a"))
    engine.add(Request(prompt, SamplingParams(1.0, max_new_tokens=5), id="b"))
    engine.step()
    engine.cancel("a")
    engine.cancel("nobody")
    assert {event.request_id for event in iter_events(engine)} == {"b"}
    assert engine.stats().pages_used == 0


def test_the_callers_model_stays_as_it_is():
    given = model()
    before = jax.tree.structure(nnx.state(given))
    Engine(given, small.tokenizer(), options())
    assert jax.tree.structure(nnx.state(given)) == before
