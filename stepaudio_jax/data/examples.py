"""From a conversation to the fixed arrays a jitted step takes.

`encode` renders one conversation and cuts its clips into chunks; `collate` lays several side by side in one bucket
shape. Training, generation and evaluation all come through here, so audio tokens and audio features can only
disagree in one place, where it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from stepaudio_jax.audio import AudioError, chunk, lengths
from stepaudio_jax.models.step_audio import AudioInput
from stepaudio_jax.text import Conversation, Rendered, Tokenizer, render


@dataclasses.dataclass(frozen=True)
class Example:
    """One rendered conversation.

    Attributes:
      chunks: of its clips, float32 [samples] at 16 kHz, one per audio span.
      source: number of the data set it is from, for metrics.
    """

    rendered: Rendered
    chunks: tuple[np.ndarray, ...]
    source: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.rendered.token_ids)

    @property
    def audio_tokens(self) -> int:
        return sum(count for _, count in self.rendered.spans)

    @property
    def longest_chunk(self) -> int:
        """Samples of the longest chunk, 0 without audio."""
        return max(map(len, self.chunks), default=0)


class Batch(NamedTuple):
    """Token arrays [B, T] and the sound that goes with them.

    Attributes:
      segment_ids: 1 for tokens, 0 for padding.
      loss_mask: tokens whose prediction is trained.
      audio: None for a batch of text.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    loss_mask: Bool[np.ndarray, "B T"]
    audio: AudioInput | None


def encode(conversation: Conversation, tokenizer: Tokenizer, *, length_rule: str = "hf", **render_options) -> Example:
    """Renders a conversation; options are those of `text.render`.

    Raises:
      AudioError: a clip too short for one audio token.
    """
    chunks: list[np.ndarray] = []

    def chunk_tokens(clip) -> list[int]:
        pieces = chunk(clip.samples)
        counts = [int(lengths.audio_tokens(len(piece), length_rule)) for piece in pieces]
        if min(counts) < 1:
            raise AudioError(f"{clip.name}: {clip.seconds:.4f} s of sound; one audio token needs more than 0.020 s")
        chunks.extend(pieces)
        return counts

    rendered = render(conversation, tokenizer, chunk_tokens, **render_options)
    return Example(rendered, tuple(chunks))


def collate(
    examples: Sequence[Example],
    *,
    length: int,
    num_chunks: int,
    chunk_samples: int,
    shards: int = 1,
    pad_id: int = 0,
) -> Batch:
    """One batch of shape [len(examples), length] with room for `num_chunks` chunks of `chunk_samples` samples.

    Args:
      shards: equal shares that rows and chunks are split into over a mesh; a row's chunks lie in its own share.

    Raises:
      ValueError: an example that does not fit; nothing is ever cut. Rows or chunks that the shards do not divide.
    """
    rows = len(examples)
    for name, size in (("examples", rows), ("num_chunks", num_chunks)):
        if size % shards:
            raise ValueError(f"{name}: expected a multiple of {shards} shards, found {size}")
    tokens = np.full((rows, length), pad_id, np.int32)
    segment_ids = np.zeros((rows, length), np.int32)
    loss_mask = np.zeros((rows, length), bool)
    slots = np.full((rows, length), -1, np.int32)
    samples = np.zeros((num_chunks, chunk_samples), np.float32)
    chunk_lengths = np.zeros(num_chunks, np.int32)
    features_per_chunk = int(lengths.adaptor_frames(chunk_samples)) if chunk_samples else 0

    used = 0
    for row, example in enumerate(examples):
        share = row * shards // rows
        used = max(used, share * num_chunks // shards)
        size = example.num_tokens
        if size > length:
            raise ValueError(f"length: row {row} has {size} tokens, the batch has room for {length}")
        tokens[row, :size] = example.rendered.token_ids
        segment_ids[row, :size] = 1
        loss_mask[row, :size] = example.rendered.loss_mask
        if len(example.chunks) != len(example.rendered.spans):
            raise ValueError(f"row {row}: {len(example.rendered.spans)} audio spans, {len(example.chunks)} chunks")
        for piece, (start, count) in zip(example.chunks, example.rendered.spans, strict=True):
            if used == (share + 1) * num_chunks // shards or len(piece) > chunk_samples:
                raise ValueError(
                    f"row {row}: a chunk of {len(piece)} samples does not fit {num_chunks // shards} chunks of "
                    f"{chunk_samples}"
                )
            samples[used, : len(piece)] = piece
            chunk_lengths[used] = len(piece)
            slots[row, start : start + count] = used * features_per_chunk + np.arange(count)
            used += 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    audio = AudioInput(samples, chunk_lengths, slots) if num_chunks else None
    return Batch(tokens, positions, segment_ids, loss_mask, audio)


def bucket(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the sorted bucket sizes that holds `size`. Raises ValueError when none does."""
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise ValueError(f"size: {size} is more than the largest bucket {sizes[-1]}")
