"""From a conversation to the fixed arrays a jitted step takes.

`encode` renders one conversation and cuts its clips into chunks; `collate` lays several in rows of one bucket shape,
tokens and sound alike. Training, generation and evaluation all come through here, so audio tokens and audio features
can only disagree in one place, where it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from stepaudio_jax.audio import AudioError, chunk, lengths
from stepaudio_jax.audio.chunks import LONGEST_CUT
from stepaudio_jax.audio.rows import UNIT_SAMPLES, put, units
from stepaudio_jax.models.step_audio import AudioInput
from stepaudio_jax.text import Conversation, Rendered, Tokenizer, render


@dataclasses.dataclass(frozen=True)
class Example:
    """One rendered conversation.

    Attributes:
      chunks: of its clips, float32 [samples] at 16 kHz, one per audio span.
      source, record: where it is from: the number of the data set, for metrics, and its own in there.
      reference: for preferences, the log-probability of its trained tokens under the reference model.
    """

    rendered: Rendered
    chunks: tuple[np.ndarray, ...]
    source: int = 0
    record: int = 0
    reference: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.rendered.token_ids)

    @property
    def audio_tokens(self) -> int:
        return sum(count for _, count in self.rendered.spans)

    @property
    def sound_units(self) -> int:
        """Units of 80 ms that its chunks need in rows of sound, no more than it has tokens."""
        return sum(int(units(len(piece))) for piece in self.chunks)


class Batch(NamedTuple):
    """Token arrays [B, T] and the sound that goes with them.

    Attributes:
      positions: from 0 in every segment.
      segment_ids: from 1 in every row, one for each example in it; 0 for padding.
      loss_mask: tokens whose prediction is trained.
      sources: the source of each token's example.
      audio: None for a batch without sound.
      reference: for preferences, at each segment's first token the log-probability of its trained tokens under the
        reference model, 0 elsewhere.
      think_tokens: at the first token of each think block that is trained on, how many tokens it has
        (text.Rendered.thinks), 0 elsewhere; for metrics.
      extra: more [B, T] arrays by name, which an objective reads where a token is predicted: one place before it.
      groups: segments that share the segment before them, a prompt, as if it stood at the beginning of each (their
        positions go on after it): the number of the group in their tokens, minus that in the prompt's, 0 elsewhere.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    loss_mask: Bool[np.ndarray, "B T"]
    sources: Int[np.ndarray, "B T"]
    audio: AudioInput | None
    reference: Float[np.ndarray, "B T"] | None = None
    think_tokens: Int[np.ndarray, "B T"] | None = None
    extra: dict[str, np.ndarray] | None = None
    groups: Int[np.ndarray, "B T"] | None = None


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
    rows: Sequence[Sequence[Example]],
    *,
    length: int,
    sound_rows: int,
    sound_samples: int,
    shards: int = 1,
    preferences: bool = False,
    pad_id: int = 0,
) -> Batch:
    """One batch of shape [len(rows), length], the examples of a row one after another.

    Each chunk of sound goes to the first row of sound that has room for it. Where a row of sound has as many units of
    80 ms as a row has tokens, there always is: a chunk never needs more units than its span has tokens. Examples that
    share a chunk, the very same array, share its place: it is encoded once.

    Args:
      sound_rows, sound_samples: how many rows of sound, and of how many samples, a multiple of 1,280.
      shards: equal shares that rows and rows of sound are split into over a mesh; a row's chunks lie in its own share.
      preferences: fill in `Batch.reference`.

    Raises:
      ValueError: examples that do not fit; nothing is ever cut. Rows that the shards do not divide.
    """
    for name, size in (("rows", len(rows)), ("sound_rows", sound_rows)):
        if size % shards:
            raise ValueError(f"{name}: expected a multiple of {shards} shards, found {size}")
    if sound_samples % UNIT_SAMPLES:
        raise ValueError(f"sound_samples: expected a multiple of {UNIT_SAMPLES} (80 ms), found {sound_samples}")
    sound = _SoundRows(sound_rows, sound_samples, shards)
    tokens = np.full((len(rows), length), pad_id, np.int32)
    positions, segment_ids, sources, think_tokens = np.zeros((4, len(rows), length), np.int32)
    loss_mask = np.zeros((len(rows), length), bool)
    slots = np.full((len(rows), length), -1, np.int32)
    reference = np.zeros((len(rows), length), np.float32) if preferences else None

    for number, row in enumerate(rows):
        if (size := sum(example.num_tokens for example in row)) > length:
            raise ValueError(f"length: row {number} has {size} tokens, the batch has room for {length}")
        begin = 0
        for segment, example in enumerate(row, start=1):
            rendered, own = example.rendered, slice(begin, begin + example.num_tokens)
            tokens[number, own] = rendered.token_ids
            positions[number, own] = np.arange(example.num_tokens)
            segment_ids[number, own] = segment
            sources[number, own] = example.source
            loss_mask[number, own] = rendered.loss_mask
            loss_mask[number, begin : begin + 1] = False  # nothing comes before it that could predict it
            if reference is not None and example.reference is not None:
                reference[number, begin] = example.reference
            for start, count in rendered.thinks:
                think_tokens[number, begin + start] = count
            if len(example.chunks) != len(rendered.spans):
                raise ValueError(
                    f"row {number}: {len(rendered.spans)} audio spans, {len(example.chunks)} chunks of sound"
                )
            for piece, (start, count) in zip(example.chunks, rendered.spans, strict=True):
                unit = sound.add(piece, share=number * shards // len(rows))
                slots[number, begin + start : begin + start + count] = unit + np.arange(count)
            begin = own.stop
    audio = AudioInput(sound.samples, sound.sizes, sound.offsets, slots) if sound_rows else None
    return Batch(tokens, positions, segment_ids, loss_mask, sources, audio, reference, think_tokens)


def sound_shape(samples: int, parts: int) -> tuple[int, int]:
    """Rows of sound for one row of tokens, and samples of each, so that any chunks that fit `samples` fit them.

    Args:
      samples: of sound that go with a row of tokens.
      parts: shards that share a row's sound; each has a row of its own.
    """
    if parts == 1 or not samples:
        return int(samples > 0), samples
    return parts, (-(-samples // UNIT_SAMPLES // parts) + int(units(LONGEST_CUT)) - 1) * UNIT_SAMPLES


class _SoundRows:
    """Rows of sound, filled first fit (audio/rows.py)."""

    def __init__(self, number: int, samples: int, shards: int):
        self.per_share, self.row_units = number // shards, samples // UNIT_SAMPLES
        self.samples = np.zeros((number, samples), np.float32)
        self.sizes, self.offsets = np.zeros((2, number, self.row_units), np.int32)
        self._used = np.zeros(number, int)
        self._units: dict[tuple[int, int], int] = {}  # by share and identity of what is there already

    def add(self, chunk: np.ndarray, share: int) -> int:
        """Puts a chunk into a share's rows, if it is not there yet; gives its first unit, counted over the share."""
        if (unit := self._units.get((share, id(chunk)))) is not None:
            return unit
        need, first = int(units(len(chunk))), share * self.per_share
        free = self.row_units - self._used[first : first + self.per_share]
        if not (fits := np.flatnonzero(free >= need)).size:
            raise ValueError(
                f"sound_rows: {len(chunk)} samples of sound need {need} units of 80 ms; {self.per_share} rows of "
                f"{self.row_units} have {free.max(initial=0)} left"
            )
        row = first + int(fits[0])
        start = int(self._used[row])
        put(self.samples[row], self.sizes[row], self.offsets[row], start, chunk)
        self._used[row] += need
        self._units[share, id(chunk)] = int(fits[0]) * self.row_units + start
        return self._units[share, id(chunk)]


def bucket(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the sorted bucket sizes that holds `size`. Raises ValueError when none does."""
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise ValueError(f"size: {size} is more than the largest bucket {sizes[-1]}")
