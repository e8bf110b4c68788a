"""Where a run's batches come from: deterministic in (seed, position), prepared beside the step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
import tokenizers
from etils import epath

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.audio.rows import UNIT_SAMPLES
from stepaudio_jax.data import Batch, Example, collate, encode, sound_shape
from stepaudio_jax.data.loading import Loader, check_lengths
from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.pipeline import PackedBatches
from stepaudio_jax.data.plan import RowPlan
from stepaudio_jax.data.set_aside import SetAside
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.configs import Config
from stepaudio_jax.training.reference import reference_scores
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


def batch_source(
    config: Config, tokenizer: Tokenizer, tokenizer_json: str, stage: Stage, workdir: epath.Path
) -> BatchSource:
    """The batches a config's `data` section describes: stored data sets (`sources`) or the miniature (`curriculum`).

    Raises:
      ValueError: it names neither, or a source that cannot be used.
    """
    if "curriculum" in config.data:
        return MiniatureSource(config, tokenizer, stage)
    if not config.data.get("sources"):
        raise ValueError(
            "config.data.sources: expected at least one data set, as --config.data.sources.NAME.path=FOLDER with "
            "a folder that `stepaudio data build` wrote, found none"
        )
    return packed_source(config, tokenizer, tokenizer_json, stage, workdir)


def run_tokenizer(config: Config) -> tuple[Tokenizer, str]:
    """The tokenizer of a run and its JSON: that of the checkpoint it starts from; from nothing, the miniature's."""
    if config.init:
        source = checkpoints.locate(config.init) / "tokenizer.json"
        text = source.read_text()
        return Tokenizer(tokenizers.Tokenizer.from_str(text), str(source)), text
    backend = miniature.build_tokenizer(config.tokenizer.vocab_size)
    return Tokenizer(backend, "the miniature's tokenizer"), backend.to_str()


def packed_source(
    config: Config, tokenizer: Tokenizer, tokenizer_json: str, stage: Stage, workdir: epath.Path
) -> PackedBatches:
    """Packed rows of a mixture of stored data sets. For DPO this is where what the reference thinks of them is found.

    config.data: batch_size; buckets, one; sources, each with path and what else data.mixture.Source has; weight_by,
    too_long (Mixture); window, threads, max_bad_share (PackedBatches); render, options of `text.render`.

    Raises:
      DatasetError, DataError, ValueError: a folder, a mixture or lengths that cannot be used.
    """
    data = config.data
    ((length, samples),) = data.buckets
    sources = [
        Source(name, StoredDataset(values["path"]), **{key: value for key, value in values.items() if key != "path"})
        for name, values in data.sources.to_dict().items()
    ]
    mixture = Mixture(sources, row_tokens=length, weight_by=data.weight_by, too_long=data.too_long)
    sha256 = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    check_lengths(mixture, sha256, data.render)
    layout = functools.partial(lay_out, stage, length=length, samples=samples)
    if "dpo" in config:
        _check_pairs(mixture)
        plan = RowPlan(mixture, seed=config.seed, window=data.window)
        loader = Loader(mixture, tokenizer, data.render, SetAside(data.max_bad_share))
        scores = reference_scores(
            config, stage, loader, functools.partial(layout, scores=[]), workdir, plan.fingerprint()
        )
        layout = functools.partial(layout, scores=scores)
    return PackedBatches(
        mixture,
        tokenizer,
        sha256,
        layout,
        batch_rows=data.batch_size,
        seed=config.seed,
        rows=stage.local_rows(),
        window=data.window,
        threads=data.threads,
        max_bad_share=data.max_bad_share,
        **data.render,
    )


def _check_pairs(mixture: Mixture):
    for source in mixture.sources:
        if single := int((source.dataset.rejected_tokens == 0).sum()):
            raise ValueError(
                f"sources.{source.name}: expected a worse reply in every record, as DPO compares, found {single} of "
                f"{len(source.dataset)} without one"
            )


def lay_out(
    stage: Stage,
    rows: Sequence[Sequence[Example]],
    *,
    length: int,
    samples: int,
    scores: Sequence[np.ndarray] | None = None,
) -> Batch:
    """The batch of a step, or this process's part of it.

    Args:
      rows: the examples of each row that this process brings (Stage.local_rows).
      length, samples: tokens of a row, and of the sound that goes with it.
      scores: for preferences, of each source what the reference thinks of them (reference.py); empty while that is
        computed.
    """
    if scores:
        rows = [
            [
                dataclasses.replace(example, reference=float(scores[example.source][example.record, i % 2]))
                for i, example in enumerate(row)
            ]
            for row in rows
        ]
    per = len(rows) // stage.microbatches
    each, samples = sound_shape(samples, stage.sound_parts)
    parts = [
        collate(
            rows[at : at + per],
            length=length,
            sound_rows=each * per,
            sound_samples=samples,
            shards=len(stage.local_shares()),
            preferences=scores is not None,
        )
        for at in range(0, len(rows), per)
    ]
    return parts[0] if stage.microbatches == 1 else jax.tree.map(lambda *x: np.stack(x), *parts)


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
        order = sorted(range(len(examples)), key=lambda i: (examples[i].num_tokens, examples[i].sound_units))
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
        samples = max(example.sound_units for example in examples) * UNIT_SAMPLES
        for bucket_length, bucket_samples in self._config.data.buckets:
            if length <= bucket_length and samples <= bucket_samples:
                rows = [[examples[row]] for row in self._stage.local_rows()]
                return lay_out(self._stage, rows, length=bucket_length, samples=bucket_samples)
        raise ValueError(f"buckets: none of {self._config.data.buckets} holds {length} tokens and {samples} samples")


def _lesson(curriculum, step: int) -> tuple[int, tuple[str, ...]]:
    """Most events of a scene and the kinds of questions, all of them where the curriculum names none."""
    _, max_events, kinds = next((lesson for lesson in curriculum if step < lesson[0]), curriculum[-1])
    return max_events, tuple(kinds) or miniature.KINDS
