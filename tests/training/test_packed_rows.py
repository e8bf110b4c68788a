"""Packing changes nothing: a dialogue's losses and gradients are those it has alone, and no other's sound, words or
length reaches it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepaudio_jax import miniature, training
from stepaudio_jax.data import Batch, Example, collate, encode
from stepaudio_jax.text import Audio, Conversation, assistant, human
from stepaudio_jax.training.losses import next_tokens, token_scores
from stepaudio_jax.training.step import hidden_states
from tests import small

SOUND = 1_280


@functools.cache
def examples() -> tuple[Example, ...]:
    """Dialogues with one clip, with none, and with three over two turns."""
    rng = np.random.default_rng(0)
    asked = [miniature.make_question(rng, max_events=2).conversation for _ in range(3)]
    asked.append(miniature.make_text_question(rng).conversation)
    clips = [Audio(small.sound(seconds, i)) for i, seconds in enumerate((0.3, 1.1, 0.7))]
    asked.append(
        Conversation(
            (
                human(clips[0], "or", clips[1], "?"),
                assistant("The second.", think="Louder."),
                human(clips[2]),
                assistant("A third.", think="Another."),
            )
        )
    )
    return tuple(encode(conversation, small.tokenizer()) for conversation in asked)


PACKED = ((0, 4), (3, 1, 2))
ALONE = tuple((i,) for row in PACKED for i in row)


def rows(layout) -> Batch:
    length = 512 if layout is PACKED else 400
    made = [[examples()[i] for i in row] for row in layout]
    return collate(made, length=length, sound_rows=len(made), sound_samples=(140 if layout is PACKED else 60) * SOUND)


@jax.jit
def scores(batch: Batch, targets):
    model = small.model(scale=1.0)
    return token_scores(hidden_states(model, batch, training.StepOptions()), model.decoder.head, targets)


def log_probs(batch: Batch) -> list[np.ndarray]:
    """Of each segment's trained tokens."""
    targets, mask = next_tokens(batch.tokens, batch.loss_mask)
    found = np.asarray(scores(batch, targets).log_probs)
    return [
        found[row][np.asarray(mask[row]) & (batch.segment_ids[row] == segment)]
        for row in range(len(found))
        for segment in range(1, batch.segment_ids[row].max() + 1)
    ]


def test_per_token_losses_are_those_of_each_dialogue_alone():
    together, alone = log_probs(rows(PACKED)), log_probs(rows(ALONE))
    assert len(together) == len(alone) == 5
    for a, b in zip(together, alone, strict=True):
        assert len(a) > 5
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_step_is_the_step_of_the_dialogues_alone():
    model = small.model(scale=1.0)
    graphdef, state = training.init_state(model, optax.sgd(1.0))
    step = jax.jit(training.make_train_step(graphdef, optax.sgd(1.0)))
    packed, alone = (step(state, rows(layout)) for layout in (PACKED, ALONE))
    for name in ("loss", "accuracy", "tokens"):
        assert float(packed[1][name]) == pytest.approx(float(alone[1][name]), rel=1e-5)
    gradients = [jax.tree.map(jnp.subtract, state.params, new.params) for new, _ in (packed, alone)]
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, *gradients))
    assert difference <= 1e-5 * optax.tree.norm(gradients[1])


@pytest.mark.parametrize("row, segment", [(0, 1), (0, 2), (1, 1), (1, 3)])
def test_what_one_dialogue_says_and_hears_moves_no_other(row, segment):
    """Other words and full-scale noise in one dialogue: its own losses move, the others' do not by a single bit."""
    batch = rows(PACKED)
    own = (np.arange(2)[:, None] == row) & (batch.segment_ids == segment)
    plain = own & (batch.audio.slots < 0)
    tokens = np.where(plain, (batch.tokens + 7) % 300 + 10, batch.tokens)
    samples = batch.audio.samples.copy()
    heard = batch.audio.slots[own & (batch.audio.slots >= 0)]
    units = samples[0].size // SOUND
    for unit in heard:
        at = divmod(int(unit), units)
        begin = at[1] * SOUND
        left = batch.audio.sizes[at] - batch.audio.offsets[at] * SOUND  # beyond it the next chunk's reflection may lie
        place = at[0], slice(begin, begin + min(left, SOUND))
        samples[place] = np.where(samples[place] > 0, 1, -1)
    changed = batch._replace(tokens=tokens, audio=batch.audio._replace(samples=samples))
    before, after = log_probs(batch), log_probs(changed)
    number = segment - 1 + (len(PACKED[0]) if row else 0)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(a, b) == (i != number)
