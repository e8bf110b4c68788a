"""Where a supervised run's batches come from: deterministic in (seed, position), prepared beside the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from stepaudio_jax import miniature
from stepaudio_jax.data import Batch, Example, collate, encode
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.stage import Stage


class BatchSource(Protocol):
    """Batches of this process's rows (Stage.local_rows), in an order that does not depend on how many processes run."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """Where it is, as small JSON: equal on every process, and of a run on any number of them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on after the batch that came before such a `state`."""
        ...


def batch_source(config: Config, tokenizer: Tokenizer, stage: Stage) -> BatchSource:
    """The batches a config's `data` section describes.

    Raises:
      ValueError: it names no source.
    """
    if "curriculum" in config.data:
        return MiniatureSource(config, tokenizer, stage)
    raise ValueError(
        "config.data: names no source of examples; pipelines for your own data are still to come. Today this "
        "config can be planned (stepaudio plan), and configs/tiny.py trained"
    )


class MiniatureSource:
    """Endless batches of fresh scenes and questions, none seen twice.

    A group of batches is drawn together, sorted by length and cut into batches, so that little of a batch is padding;
    each batch takes the smallest bucket shape that holds it. Every process makes all of it and keeps its rows.

    config.data: batch_size, batches_per_group, text_share (of questions without sound), silent_share (of those with
    sound whose sound is taken away), curriculum as ((until step, max_events, kinds), …), buckets as ((tokens, audio
    samples), …) in growing order, group_threads.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, stage: Stage):
        self._config, self._tokenizer, self._stage = config, tokenizer, stage
        self.restore({"batch": 0})

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._done += 1
        return batch

    def state(self) -> dict[str, int]:
        return {"batch": self._done}

    def restore(self, state: Mapping[str, int]) -> None:
        self._done = state["batch"]
        self._batches = self._from(self._done)

    def _from(self, batch: int) -> Iterator[Batch]:
        data = self._config.data
        first, skip = divmod(batch, data.batches_per_group)
        dataset = (
            grain.MapDataset.range(first, 2**31)
            .map(lambda index: self._group(int(index)))
            .to_iter_dataset(grain.ReadOptions(num_threads=data.group_threads, prefetch_buffer_size=3))
        )
        for group in dataset:
            yield from group[skip:]
            skip = 0

    def _group(self, index: int) -> list[Batch]:
        data = self._config.data
        rng = np.random.default_rng((self._config.seed, index))
        examples = self._draw(rng, index * data.batches_per_group)
        order = sorted(range(len(examples)), key=lambda i: (examples[i].num_tokens, examples[i].longest_chunk))
        batches = [
            self._batch([examples[i] for i in order[at : at + data.batch_size]])
            for at in range(0, len(order), data.batch_size)
        ]
        rng.shuffle(batches)  # type: ignore[arg-type]
        return batches

    def _draw(self, rng: np.random.Generator, step: int) -> list[Example]:
        """The examples of a group of batches, the first of which is a step's."""
        data, examples = self._config.data, []
        max_events, kinds = _lesson(data.curriculum, step)
        for _ in range(data.batch_size * data.batches_per_group):
            if rng.random() < data.text_share:
                question = miniature.make_text_question(rng)
            else:
                question = miniature.make_question(rng, kinds[int(rng.integers(len(kinds)))], max_events=max_events)
                if data.silent_share and rng.random() < data.silent_share:
                    question = miniature.silenced(question, background=bool(rng.random() < 0.5))
            examples.append(encode(question.conversation, self._tokenizer))
        return examples

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """Of all rows of a step, those of this process, in the smallest bucket that holds all."""
        length = max(example.num_tokens for example in examples)
        samples = max(example.longest_chunk for example in examples)
        microbatches = self._config.microbatches
        mine = self._stage.local_rows()
        per = len(mine) // microbatches
        for bucket_length, bucket_samples in self._config.data.buckets:
            if length <= bucket_length and samples <= bucket_samples:
                parts = [
                    collate(
                        [examples[row] for row in mine[at : at + per]],
                        length=bucket_length,
                        num_chunks=per * self._config.data.chunks_per_row,
                        chunk_samples=bucket_samples,
                        shards=len(self._stage.local_shares()),
                    )
                    for at in range(0, len(mine), per)
                ]
                return parts[0] if microbatches == 1 else jax.tree.map(lambda *x: np.stack(x), *parts)
        raise ValueError(
            f"buckets: none of {self._config.data.buckets} holds {length} tokens and {samples} samples"
        )


def _lesson(curriculum, step: int) -> tuple[int, tuple[str, ...]]:
    """Most events of a scene and the kinds of questions, all of them where the curriculum names none."""
    _, max_events, kinds = next((lesson for lesson in curriculum if step < lesson[0]), curriculum[-1])
    return max_events, tuple(kinds) or miniature.KINDS
