"""The plain generation loop: a batch of requests is prefilled together and decoded until all have ended.

Decoding runs K steps on the device at a time. Between bursts the host turns tokens into text, looks for stop
strings, tags and spent budgets, and drops what ran past an end: going back is free, as a cache slot is a position.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stepaudio_jax.audio import lengths, stack
from stepaudio_jax.audio.chunks import BUCKETS
from stepaudio_jax.data import Example, bucket, encode
from stepaudio_jax.inference.programs import Programs
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.inference.types import AudioProgress, Event, Finished, Request, SamplingParams, Usage
from stepaudio_jax.inference.writer import ReplyWriter
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import Linear, unstack
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.text import Tokenizer

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = tuple(length for power in range(6, 19) for length in (2**power, 3 * 2 ** (power - 1)))
CHUNKS_AT_ONCE = (1, 4, 16)
"""Bucket sizes: rows of a batch; prompt, cache and feature lengths; chunks encoded together."""

STOP_IDS = 8


class PromptError(ValueError):
    """A request that cannot be answered; the message says by how much and what to do."""


@dataclasses.dataclass
class _Row:
    """A request under way: its prompt, its reply, and where the next decode step starts."""

    example: Example
    writer: ReplyWriter
    limit: int
    """Most tokens of the reply: what was asked for, and what the model has positions for."""

    @property
    def position(self) -> int:
        return self.example.num_tokens - 1 + len(self.writer.token_ids)

    @property
    def last_token(self) -> int:
        written = self.writer.token_ids
        return written[-1] if written else int(self.example.rendered.token_ids[-1])


def _for_cpu(model: StepAudio) -> StepAudio:
    """The model with its decoder laid out for a CPU, which reads every weight once per token: slicing a stack of
    layers would move each twice. The caller's model stays as it is."""
    model = nnx.merge(*nnx.split(model))
    model.decoder.layers = unstack(model.decoder.layers)
    for _, module in nnx.iter_modules(model.decoder.layers):
        if isinstance(module, Linear):
            module.store_output_major()
    return model


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


class Generator:
    """`generate(requests)` over one model. Programs compile on first use of a bucket and are kept."""

    def __init__(
        self,
        model: StepAudio,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 8,
        burst: int = 16,
        length_rule: str = "hf",
        rules: ShardingRules | None = None,
    ):
        """
        Args:
          batch_size: most requests that run together.
          burst: decode steps between two looks of the host.
          rules: the mesh that the model lies on; none: a single device.
        """
        if jax.default_backend() == "cpu" and rules is None:
            model = _for_cpu(model)
        self.model_config = model.config
        self.tokenizer = tokenizer
        self.batch_size, self.length_rule = batch_size, length_rule
        self.programs = Programs(
            model, vocab_size=tokenizer.vocab_size, steps=burst, length_rule=length_rule, rules=rules
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Answers requests in batches, in order; events of one batch interleave.

        Raises:
          PromptError: a prompt longer than the model's positions.
          AudioError: a clip too short for one audio token.
        """
        requests = iter(requests)
        while group := list(itertools.islice(requests, self.batch_size)):
            yield from self._batch([self._row(request) for request in group])

    def _row(self, request: Request) -> _Row:
        if request.conversation is None:
            raise PromptError("token_ids: expected a conversation, which this loop renders")
        example = encode(
            request.conversation,
            self.tokenizer,
            length_rule=self.length_rule,
            generate=True,
            thinking=request.thinking,
            keep_think=request.keep_think,
            template=request.template,
        )
        positions = self.model_config.decoder.max_position_embeddings
        if example.num_tokens >= positions:
            raise PromptError(
                f"the prompt has {example.num_tokens} tokens, {example.audio_tokens} of them audio "
                f"({sum(map(len, example.chunks)) / lengths.SAMPLE_RATE:.0f} s), but the model has {positions} "
                "positions; ask about a shorter piece"
            )
        usage = Usage(
            audio_seconds=sum(map(len, example.chunks)) / lengths.SAMPLE_RATE,
            audio_tokens=example.audio_tokens,
            prompt_tokens=example.num_tokens,
            completion_tokens=0,
        )
        stop_ids = {*self.model_config.eos_token_ids, self.tokenizer.end_of_turn, *request.sampling.stop_token_ids}
        if len(stop_ids) > STOP_IDS:
            raise PromptError(f"stop_token_ids: at most {STOP_IDS} in all, found {len(stop_ids)}")
        writer = ReplyWriter(request, self.tokenizer, self._prefix(example), sorted(stop_ids), usage)
        return _Row(example, writer, min(request.sampling.max_new_tokens, positions - example.num_tokens))

    def _prefix(self, example: Example) -> str:
        """The text of the assistant turn that the prompt leaves open."""
        ids = example.rendered.token_ids
        start = int(np.flatnonzero(ids == self.tokenizer.begin_of_turn)[-1])
        return self.tokenizer.decode(ids[start + 1 :].tolist()).partition("\n")[2]

    def _batch(self, rows: list[_Row]) -> Iterator[Event]:
        features, slots = yield from self._hear(rows)
        size = _multiple(bucket(len(rows), (*BATCHES, self.batch_size)), self.programs.shards("batch"))
        longest = max(row.example.num_tokens for row in rows)
        length = _multiple(bucket(longest, LENGTHS), self.programs.shards("length"))
        tokens = np.zeros((size, length), np.int32)
        all_slots = np.full((size, length), -1, np.int32)
        for i, row in enumerate(rows):
            ids = row.example.rendered.token_ids
            tokens[i, : len(ids)] = ids
            all_slots[i, : len(ids)] = slots[i]
        cache_length = self._cache_length(rows, length)
        cache = self.programs.prefill(tokens, all_slots, features, cache_length)
        params = SamplingArrays.stack(
            [row.writer.request.sampling for row in rows] + [SamplingParams(temperature=0.0)] * (size - len(rows))
        )
        stop_ids = np.full((size, STOP_IDS), -1, np.int32)
        for i, row in enumerate(rows):
            stop_ids[i, : len(row.writer.stop_ids)] = row.writer.stop_ids

        while any(not row.writer.done for row in rows):
            needed = self._cache_length(rows, 0)
            if needed > cache_length:
                cache, cache_length = self.programs.grow(cache, needed), needed
            cache = self._burst(rows, cache, size, params, stop_ids)
            for row in rows:
                yield from row.writer.take_events()
                if row.writer.done and not row.writer.delivered:
                    row.writer.delivered = True
                    yield Finished(row.writer.completion())

    def _burst(self, rows: list[_Row], cache: Any, size: int, params: SamplingArrays, stop_ids: np.ndarray) -> Any:
        steps = self.programs.steps
        last = np.zeros(size, np.int32)
        positions = np.zeros(size, np.int32)
        live = np.zeros(size, bool)
        forced = np.full((size, steps), -1, np.int32)
        for i, row in enumerate(rows):
            last[i], positions[i], live[i] = row.last_token, row.position, not row.writer.done
            pending = row.writer.pending[:steps]
            forced[i, : len(pending)] = pending
        wanted = min(steps, max(row.limit - len(row.writer.token_ids) for row in rows if not row.writer.done))
        out = self.programs.decode(
            cache, last, positions, live, forced, stop_ids, self._seen(rows, size), params, wanted
        )
        tokens, log_probs, ran = np.asarray(out.tokens), np.asarray(out.log_probs), int(out.steps)
        for i, row in enumerate(rows):
            for step in range(ran if live[i] else 0):
                was_forced = forced[i, step] >= 0
                row.writer.push(int(tokens[i, step]), None if was_forced else float(log_probs[i, step]))
                if not row.writer.done and len(row.writer.token_ids) >= row.limit:
                    row.writer.out_of_room()
                following = forced[i, step + 1] if step + 1 < steps else -1
                if row.writer.done or (row.writer.pending and row.writer.pending[0] != following):
                    break  # what ran past is dropped, and overwritten from here
        return out.cache

    def _seen(self, rows: list[_Row], size: int) -> np.ndarray:
        seen = np.zeros((size, self.model_config.decoder.vocab_size), bool)
        for i, row in enumerate(rows):
            if row.writer.request.sampling.repetition_penalty != 1:
                seen[i, row.example.rendered.token_ids] = True
                seen[i, row.writer.token_ids] = True
        return seen

    def _cache_length(self, rows: Sequence[_Row], at_least: int) -> int:
        """Slots for the next burst of every live row, with room so that short replies never grow the cache."""
        ends = [row.position + self.programs.steps + 1 for row in rows if not row.writer.done]
        return _multiple(bucket(max([at_least, *ends]), LENGTHS[4:]), self.programs.shards("length"))

    def _hear(self, rows: Sequence[_Row]) -> Iterator[Event]:
        """Encodes all chunks of a batch and returns features [R, E] (None without audio) and each row's slots."""
        chunks = [(i, j, piece) for i, row in enumerate(rows) for j, piece in enumerate(row.example.chunks)]
        chunks.sort(key=lambda chunk: len(chunk[2]))  # so that those of one bucket come together
        slots = [np.full(row.example.num_tokens, -1, np.int32) for row in rows]
        parts, offset, done = [], 0, 0
        while done < len(chunks):
            width = bucket(len(chunks[done][2]), BUCKETS)
            same = list(itertools.takewhile(lambda c, w=width: bucket(len(c[2]), BUCKETS) == w, chunks[done:]))
            together = max(n for n in CHUNKS_AT_ONCE if n <= len(same))
            samples, sizes = stack([piece for *_, piece in same[:together]])
            for place, (i, j, _) in enumerate(same[:together]):
                start, count = rows[i].example.rendered.spans[j]
                per_chunk = int(lengths.adaptor_frames(width))
                slots[i][start : start + count] = offset + place * per_chunk + np.arange(count)
            features = self.programs.encode(samples, sizes)
            parts.append(features.reshape(-1, features.shape[-1]))
            offset += len(parts[-1])
            done += together
            parts[-1].block_until_ready()
            yield AudioProgress(done, len(chunks))
        if not parts:
            return None, slots
        room = bucket(offset, LENGTHS)
        features = jnp.concatenate(parts)
        return jnp.pad(features, ((0, room - offset), (0, 0))), slots
