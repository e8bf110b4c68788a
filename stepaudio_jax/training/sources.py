"""Where a supervised run's batches come from: deterministic in (seed, step), prepared beside the step."""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np

from stepaudio_jax import miniature
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.data import Batch, Example, collate, encode
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.configs import Config


def miniature_batches(config: Config, tokenizer: Tokenizer, seed: int, *, shards: int = 1) -> Iterator[Batch]:
    """Endless batches of fresh scenes and questions, none seen twice.

    A group of batches is drawn together, sorted by length and cut into batches, so that little of a batch is
    padding; each batch takes the smallest bucket shape that holds it.

    Args:
      config: batch_size, batches_per_group, text_share (of questions without sound), silent_share (of those with
        sound whose sound is taken away), curriculum as ((until step, max_events, kinds), …), buckets as
        ((tokens, audio samples), …) in growing order, group_threads.
      shards: shares of rows and chunks over a mesh (data.collate).
    """
    dataset = (
        grain.MapDataset.range(2**31)
        .map(lambda index: _group(config, tokenizer, seed, int(index), shards))
        .to_iter_dataset(grain.ReadOptions(num_threads=config.group_threads, prefetch_buffer_size=3))
    )
    for group in dataset:
        yield from group


def _group(config: Config, tokenizer: Tokenizer, seed: int, index: int, shards: int) -> list[Batch]:
    rng = np.random.default_rng((seed, index))
    max_events, kinds = _lesson(config.curriculum, index * config.batches_per_group)
    examples = []
    for _ in range(config.batch_size * config.batches_per_group):
        if rng.random() < config.text_share:
            question = miniature.make_text_question(rng)
        else:
            question = miniature.make_question(rng, kinds[int(rng.integers(len(kinds)))], max_events=max_events)
            if config.silent_share and rng.random() < config.silent_share:
                question = miniature.silenced(question, background=bool(rng.random() < 0.5))
        examples.append(encode(question.conversation, tokenizer))
    order = sorted(range(len(examples)), key=lambda i: (examples[i].num_tokens, examples[i].sound_units))
    batches = [
        _batch([examples[i] for i in order[at : at + config.batch_size]], config, shards)
        for at in range(0, len(order), config.batch_size)
    ]
    rng.shuffle(batches)  # type: ignore[arg-type]
    return batches


def _batch(examples: list[Example], config: Config, shards: int) -> Batch:
    length = max(example.num_tokens for example in examples)
    samples = max(example.sound_units for example in examples) * UNIT_SAMPLES
    for bucket_length, bucket_samples in config.buckets:
        if length <= bucket_length and samples <= bucket_samples:
            return collate(
                [[example] for example in examples],
                length=bucket_length,
                sound_rows=config.batch_size,
                sound_samples=bucket_samples,
                shards=shards,
            )
    raise ValueError(f"buckets: none of {config.buckets} holds {length} tokens and {samples} samples")


def _lesson(curriculum, step: int) -> tuple[int, tuple[str, ...]]:
    """Most events of a scene and the kinds of questions, all of them where the curriculum names none."""
    _, max_events, kinds = next((lesson for lesson in curriculum if step < lesson[0]), curriculum[-1])
    return max_events, tuple(kinds) or miniature.KINDS
