"""From a request to its tokens: every option reaches what it is for, over a model whose next token is known by hand.

Its layers add nothing, its embeddings are unit vectors: the logits after a token are a column of a table, chosen by the
token's number modulo 32. So what greedy decoding, a penalty, filters and stop ids must give is a few lines of numpy.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams
from stepaudio_jax.inference.session import sampling_defaults
from stepaudio_jax.models import StepAudio
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests import small

VOCABULARY, CLASSES = 512, 32
TABLE = np.random.default_rng(0).standard_normal((VOCABULARY, CLASSES)).astype(np.float32) * 1.5
TABLE[:2] = -20.0  # the ends of a turn and of a text
PROMPT = (40, 77, 300, 9)


@functools.cache
def model(end: int | None = None) -> StepAudio:
    """`end`: a token that is the likeliest after the second one of the reply."""
    made = small.model(scale=1.0)
    layers, decoder = made.decoder.layers, made.decoder
    for linear in (layers.o_proj, layers.down_proj):
        linear.kernel.set_value(jnp.zeros_like(linear.kernel[...]))
    decoder.embed_tokens.set_value(jnp.eye(CLASSES)[jnp.arange(520) % CLASSES])
    decoder.norm.scale.set_value(jnp.ones(CLASSES))
    table = np.concatenate([TABLE, np.full((8, CLASSES), 99.0, np.float32)])  # these are no entries of the tokenizer
    if end is not None:
        table[end, greedy(PROMPT[-1], 2)[-1] % CLASSES] = 50.0
    decoder.lm_head.set_value(jnp.asarray(table / np.sqrt(CLASSES)))
    return made


def options(**values) -> EngineOptions:
    return EngineOptions(**{"max_rows": 2, "page_size": 4, "pages": 64, "prefill_tokens": 16, "burst": 4} | values)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(model(), small.tokenizer(), options())


def ask(engine: Engine, prompt=PROMPT, **sampling):
    params = SamplingParams(**{"temperature": 0.0, "max_new_tokens": 12} | sampling)
    *_, last = engine.generate([Request(token_ids=tuple(prompt), sampling=params)])
    assert isinstance(last, Finished)
    return last.completion


def greedy(last: int, count: int) -> list[int]:
    written = []
    for _ in range(count):
        last = int(TABLE[:, last % CLASSES].argmax())
        written.append(last)
    return written


def log_probs(last: int, temperature: float) -> np.ndarray:
    scores = TABLE[:, last % CLASSES].astype(np.float64) / temperature
    return scores - np.log(np.exp(scores).sum())


def test_greedy_tokens_and_their_log_probs(engine):
    """At 1 though the temperature is 0; and the likeliest of each place, best first."""
    done = ask(engine, top_log_probs=3)
    assert list(done.token_ids) == greedy(PROMPT[-1], 12) and done.finish_reason == "length"
    for last, token, log_prob, top in zip(
        (PROMPT[-1], *done.token_ids), done.token_ids, done.log_probs, done.top_log_probs, strict=False
    ):
        expected = log_probs(last, 1.0)
        assert log_prob == pytest.approx(expected[token], abs=1e-4)
        order = np.argsort(-expected)[:3]
        assert [name for name, _ in top] == order.tolist()
        np.testing.assert_allclose([value for _, value in top], expected[order], atol=1e-4)


def test_log_probs_are_at_the_temperature(engine):
    done = ask(engine, temperature=2.0, seed=5, top_k=40, min_p=0.01)
    for last, token, log_prob in zip((PROMPT[-1], *done.token_ids), done.token_ids, done.log_probs, strict=False):
        assert log_prob == pytest.approx(log_probs(last, 2.0)[token], abs=1e-4)


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-4}, {"min_p": 1.0}], ids=str)
def test_filters_that_leave_one_token(engine, filters):
    """However hot: the likeliest is all there is."""
    assert list(ask(engine, temperature=5.0, **filters).token_ids) == greedy(PROMPT[-1], 12)


def test_draws_are_as_likely_as_the_table_says(engine):
    """Of 600 first tokens after one prompt, as many are the likeliest as its probability says, within five errors."""
    requests = [
        Request(token_ids=PROMPT, sampling=SamplingParams(temperature=0.6, max_new_tokens=1, seed=seed), id=f"d{seed}")
        for seed in range(600)
    ]
    tokens = [e.completion.token_ids[0] for e in engine.generate(requests) if isinstance(e, Finished)]
    best = np.exp(log_probs(PROMPT[-1], 0.6)).max()
    share = np.mean(np.array(tokens) == greedy(PROMPT[-1], 1)[0])
    assert abs(share - best) < 5 * np.sqrt(best * (1 - best) / 600) and len(set(tokens)) > 20


def test_every_token_of_a_reply_is_drawn_anew(engine):
    """So hot that all are alike: twelve draws from 512."""
    assert len(set(ask(engine, temperature=1e4, seed=3).token_ids)) >= 10


def test_rows_have_parameters_of_their_own(engine):
    """Side by side, one greedy and one so hot that all are alike, in either order."""
    sampling = {name: SamplingParams(temperature=t, max_new_tokens=8) for name, t in (("cold", 0.0), ("hot", 1e4))}
    for order in (("cold", "hot"), ("hot", "cold")):
        requests = [Request(token_ids=PROMPT, sampling=sampling[name], id=name) for name in order]
        events = [event for event in engine.generate(requests) if isinstance(event, Finished)]
        done = {event.request_id: list(event.completion.token_ids) for event in events}
        assert done["cold"] == greedy(PROMPT[-1], 8) != done["hot"] and len(set(done["hot"])) >= 7


@pytest.mark.parametrize("penalty", [1.3, 4.0])
def test_the_repetition_penalty_counts_prompt_and_reply(engine, penalty):
    likeliest = greedy(PROMPT[-1], 1)[0]
    prompt = (PROMPT[0], likeliest, *PROMPT[1:])
    seen, last, expected = set(prompt), prompt[-1], []
    for _ in range(12):
        scores = TABLE[:, last % CLASSES].copy()
        for token in seen:
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        last = int(scores.argmax())
        seen.add(last)
        expected.append(last)
    assert list(ask(engine, prompt, repetition_penalty=penalty).token_ids) == expected
    assert expected[0] != likeliest or penalty < 2


def test_a_place_that_was_anothers_has_forgotten_what_he_said(engine):
    """The tokens of one request are not punished in the next."""
    first = ask(engine, repetition_penalty=4.0)
    assert ask(engine, repetition_penalty=4.0).token_ids == first.token_ids


def test_stop_ids_end_the_reply(engine):
    expected = greedy(PROMPT[-1], 12)
    token = next(t for i, t in enumerate(expected) if i >= 2 and t not in expected[:i])
    done = ask(engine, stop_token_ids=(token,))
    assert list(done.token_ids) == expected[: expected.index(token) + 1] and done.finish_reason == "stop"


def test_a_burst_ends_where_every_row_has_ended(engine, monkeypatch):
    """On the device: a stop id as the second token leaves two steps of four."""
    ran, decode = [], engine.programs.decode

    def counted(*arguments):
        memory, burst = decode(*arguments)
        ran.append(int(burst.steps))
        return memory, burst

    monkeypatch.setattr(engine.programs, "decode", counted)
    monkeypatch.setattr(engine.replies, "steps", lambda deciding: 4)
    ask(engine, stop_token_ids=(greedy(PROMPT[-1], 2)[1],))
    assert ran == [2]


@pytest.mark.parametrize("end", [0, 1])
def test_the_models_own_ends_end_the_reply(end):
    """Each id of the config's eos, once it is the likeliest."""
    done = ask(Engine(model(end), small.tokenizer(), options()))
    assert list(done.token_ids) == [*greedy(PROMPT[-1], 2), end] and done.finish_reason == "stop"


def test_a_budget_of_thought_forces_the_end_of_the_block(engine):
    closing = small.tokenizer().encode("\n</think>\n")
    sampling = SamplingParams(temperature=0.0, max_new_tokens=3 + len(closing) + 2, think_budget=3)
    request = Request(Conversation((human("Hi"),)), sampling)
    *_, last = engine.generate([request])
    done, before = last.completion, engine.prepare(request).token_ids[-1]
    assert list(done.token_ids) == [*greedy(before, 3), *closing, *greedy(closing[-1], 2)]
    assert done.forced == (False,) * 3 + (True,) * len(closing) + (False,) * 2
    assert [score is None for score in done.log_probs] == list(done.forced)


def test_a_reply_that_is_not_split(engine):
    """Given as it was written, tags and all."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=12, think_budget=2)
    for split in (True, False):
        *_, last = engine.generate([Request(Conversation((human("Hi"),)), sampling, split_think=split)])
        done = last.completion
        assert ("</think>" in done.answer) == (not split) and bool(done.think) == split


def test_who_has_the_lowest_priority_gives_way():
    """Pages for one and a bit: the first to come, of the lower priority, ends last, and both write what they would."""
    engine = Engine(model(), small.tokenizer(), options(pages=10))
    sampling, order = SamplingParams(temperature=0.0, max_new_tokens=30), []
    engine.add(Request(token_ids=PROMPT, sampling=sampling, id="low", priority=1))
    engine.step()
    engine.add(Request(token_ids=PROMPT, sampling=sampling, id="high", priority=0))
    while engine.has_work:
        order += [event.completion for event in engine.step() if isinstance(event, Finished)]
    assert [done.request_id for done in order] == ["high", "low"] and engine.stats().interruptions >= 1
    assert {done.token_ids for done in order} == {tuple(greedy(PROMPT[-1], 30))}


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, "<|BOT|>assistant\nb<|EOT|><|BOT|>human\nc<|EOT|><|BOT|>assistant\n<think>\n"),
        ({"thinking": False}, "<|BOT|>human\nc<|EOT|><|BOT|>assistant\n<think>\n\n</think>\n"),
        (
            {"keep_think": True},
            "<|BOT|>assistant\n<think>\nt\n</think>\nb<|EOT|><|BOT|>human\nc<|EOT|><|BOT|>assistant\n<think>\n",
        ),
        ({"template": "released"}, "<|BOT|>assistant\nb<|BOT|>human\nc<|EOT|><|BOT|>assistant\n<think>\n"),
    ],
    ids=str,
)
def test_how_a_conversation_is_rendered(engine, options, ending):
    turns = (human("a"), assistant("b", think="t"), human("c"))
    ids = engine.prepare(Request(Conversation(turns), **options)).token_ids
    assert small.tokenizer().decode(ids.tolist(), skip_special=False).endswith(ending)


def test_the_length_rule_counts_the_tokens_of_sound():
    counts = {}
    for rule in ("hf", "vllm"):
        engine = Engine(model(), small.tokenizer(), options(), length_rule=rule)
        prepared = engine.prepare(Request(Conversation((human(Audio(small.sound(0.65)), "?"),))))
        counts[rule] = sum(count for _, count in prepared.spans)
        assert engine.programs.length_rule == rule
    assert counts == {"hf": 8, "vllm": 9}


def test_the_length_rule_reaches_the_programs_encoder():
    """Of a chunk whose last frame the rules count differently, the features that are kept differ."""
    samples, sizes = np.zeros((1, 16_000), np.float32), np.array([160 * 65], np.int32)
    samples[0, : sizes[0]] = small.sound(0.65)
    kept = {}
    for rule in ("hf", "vllm"):
        engine = Engine(small.model(scale=1.0), small.tokenizer(), options(), length_rule=rule)
        memory = engine.programs.hear(engine.memory, samples, sizes, np.zeros(1, np.int32))
        kept[rule] = np.asarray(memory.features)[:8]
    assert np.abs(kept["hf"] - kept["vllm"]).max() > 1e-4


def test_integers_are_what_the_options_ask_for(monkeypatch):
    monkeypatch.setattr("stepaudio_jax.inference.engine.kv_scale", lambda *_: jnp.full((2, 4, 8), 0.25))

    def made(**values) -> tuple[set[str], Engine]:
        engine = Engine(model(), small.tokenizer(), options(**values))
        return {str(x.dtype) for x in jax.tree.leaves(engine.programs.state["decoder"]["layers"])}, engine

    (plain, whole), (integers, _), (_, cache) = made(), made(weights="int8"), made(kv_cache="int8")
    assert "int8" in integers and "int8" not in plain
    assert whole.memory.pages.dtype == jnp.float32 and whole.memory.scale is None
    assert cache.memory.pages.dtype == jnp.int8 and (cache.memory.scale == 0.25).all()


def test_prefixes_are_shared_unless_they_may_not_be(engine):
    prompt = tuple(range(100, 118))
    for _ in range(2):
        shared = ask(engine, prompt, max_new_tokens=1)
    assert shared.usage.cached_tokens == 16
    alone = Engine(model(), small.tokenizer(), options(share_prefixes=False))
    assert [ask(alone, prompt, max_new_tokens=1).usage.cached_tokens for _ in range(2)] == [0, 0]


def test_a_checkpoints_sampling_defaults(tmp_path):
    values = {"do_sample": True, "temperature": 0.3, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "max_new_tokens": 5,
              "repetition_penalty": 1.2}  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    found = sampling_defaults(tmp_path)
    assert {name: getattr(found, name) for name in values if name != "do_sample"} == {
        name: value for name, value in values.items() if name != "do_sample"
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(values | {"do_sample": False}))
    assert sampling_defaults(tmp_path).temperature == 0.0
