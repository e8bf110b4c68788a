"""The sampler against filters written out in numpy, and against the distribution it claims to draw from."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.inference import SamplingParams
from stepaudio_jax.inference.sampling import BLOCK, SamplingArrays, draw, filter_scores, likeliest_token, sample

VOCAB = 16


def arrays(*params: SamplingParams) -> SamplingArrays:
    return SamplingArrays(*map(jnp.asarray, SamplingArrays.stack(params)))


def kept_by_hand(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Ids that survive, by the definitions, on scores without ties."""
    order = list(np.argsort(-scores))
    if top_k:
        order = order[:top_k]
    probs = np.exp(scores[order] - scores.max())
    probs /= probs.sum()
    keep = [i for n, i in enumerate(order) if probs[:n].sum() < top_p]
    best = scores[keep].max()
    return {int(i) for i in keep if scores[i] >= best + np.log(max(min_p, 1e-38))}


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(0, VOCAB + 3),
    st.floats(0.05, 1.0),
    st.sampled_from([0.0, 0.05, 0.3, 0.9]),
)
def test_filters_keep_what_the_definitions_keep(seed, top_k, top_p, min_p):
    scores = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32) * 3
    out = filter_scores(jnp.asarray(scores[None]), arrays(SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)))
    kept = {int(i) for i in np.flatnonzero(np.isfinite(np.asarray(out[0])))}
    probs = np.sort(np.exp(scores.astype(np.float64)))[::-1]
    margin = np.abs(np.cumsum(probs[: top_k or None]) / probs[: top_k or None].sum() - top_p).min()
    if margin > 1e-5:  # a cut that float32 decides otherwise is no error
        assert kept == kept_by_hand(scores.astype(np.float64), top_k, top_p, min_p)


def draws(logits, params: SamplingParams, number: int, seen=None, vocab_size=VOCAB):
    """`number` independent draws from one distribution: one row each, at different positions."""
    rows = np.repeat(np.asarray(logits, np.float32)[None], number, 0)
    seen = np.zeros_like(rows, bool) if seen is None else np.repeat(seen[None], number, 0)
    tokens, found = sample(
        jnp.asarray(rows), arrays(*[params] * number), lambda: jnp.asarray(seen), jnp.arange(number), vocab_size
    )
    return np.asarray(tokens), np.asarray(found.log_probs())


def test_draws_follow_the_distribution():
    logits = np.random.default_rng(0).standard_normal(VOCAB)
    tokens, _ = draws(logits, SamplingParams(temperature=0.7), 20_000)
    expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    counts = np.bincount(tokens, minlength=VOCAB) / len(tokens)
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / len(tokens))


def test_a_large_vocabulary():
    """More than one block of tokens, the last not full: the first of the highest; draws as the distribution says,
    never what has no probability, also at either end of the numbers."""
    size = 3 * BLOCK + 5
    scores = np.random.default_rng(1).standard_normal((4, size)).astype(np.float32)
    scores[:, 200:300], scores[0, [7, 380]], scores[1, -1] = -np.inf, 9, 9
    scores[2, :3], scores[2, -4:] = -np.inf, -np.inf
    assert likeliest_token(jnp.asarray(scores)).tolist() == scores.argmax(-1).tolist()
    exact = np.exp(scores.astype(np.float64)) / np.exp(scores.astype(np.float64)).sum(-1, keepdims=True)
    for number in (0.0, 0.25, 0.5, 1 - 2.0**-23):
        tokens = np.asarray(draw(jnp.asarray(scores), jnp.full(4, number, jnp.float32)))
        assert np.isfinite(scores[np.arange(4), tokens]).all()
        ends = exact.cumsum(-1)[np.arange(4), tokens]
        assert (number < ends + 1e-6).all() and (number > ends - exact[np.arange(4), tokens] - 1e-6).all()


def test_padding_of_the_vocabulary_is_never_chosen():
    logits = np.zeros(VOCAB)
    logits[12:] = 9
    for temperature in (0.0, 1.0):
        tokens, log_probs = draws(logits, SamplingParams(temperature=temperature), 200, vocab_size=12)
        assert tokens.max() < 12
        np.testing.assert_allclose(log_probs[:, :12], np.log(1 / 12), atol=1e-5)


def test_the_repetition_penalty_is_hugging_faces():
    logits = np.linspace(-2, 2, VOCAB)
    seen = np.zeros(VOCAB, bool)
    seen[-1] = True
    tokens, log_probs = draws(logits, SamplingParams(temperature=0.0, repetition_penalty=2.0), 1, seen)
    assert tokens[0] == VOCAB - 2  # 2.0 / 2 falls behind 1.73
    assert log_probs[0].argmax() == VOCAB - 1  # the model's own distribution is not touched
    seen[:] = True
    assert draws(-np.abs(logits) - 1, SamplingParams(temperature=0.0, repetition_penalty=2.0), 1, seen)[0][0] in (7, 8)


def test_rows_differ_in_their_parameters():
    logits = np.repeat(np.linspace(0, 3, VOCAB, dtype=np.float32)[None], 3, 0)
    params = arrays(
        SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_k=1), SamplingParams(temperature=9.0)
    )
    one = jax.jit(lambda at: sample(jnp.asarray(logits), params, lambda: jnp.zeros((3, VOCAB), bool), at, VOCAB)[0])
    greedy, only_one, hot = zip(*(one(jnp.full(3, at)).tolist() for at in range(64)), strict=True)
    assert set(greedy) == set(only_one) == {VOCAB - 1} and len(set(hot)) > 5
