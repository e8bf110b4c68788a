"""Rollouts: replies of the present policy to prompts, several each, by the engine; and their way into rows of tokens.

The engine is deterministic for a seed whatever else runs beside, so a rollout that was cut off goes on where it was:
what has been written of it lies in a journal, and the rest is written as it would have been. (Of the sampler's
log-probabilities the last bits depend on what is computed together; the trainer computes its own.)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from stepaudio_jax.audio.rows import UNIT_SAMPLES, units
from stepaudio_jax.data import Example, collate
from stepaudio_jax.data.examples import Batch
from stepaudio_jax.inference import Engine, Finished, Prepared, Request, SamplingParams
from stepaudio_jax.parallel.first import is_first, of_first
from stepaudio_jax.rl.rewards import AnyReward
from stepaudio_jax.text import Conversation, Rendered


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question that the policy is to answer.

    Attributes:
      conversation: without the reply.
      truth: what the reward compares with.
      source: name of the data set, for metrics.
      reward: of its replies.
      extra: the record's other columns.
      history: the dialogue as a judge is shown it, where the policy is shown more; None: the conversation.
    """

    conversation: Conversation
    truth: Any
    source: str
    reward: AnyReward
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: Conversation | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A reply to a prompt: number `sample` of those to number `prompt`.

    Attributes:
      token_ids: of the reply, the one that ended it included.
      log_probs: as the sampler had them; None for a forced token, which the policy did not choose.
      complete: the think block was closed. truncated: cut off at its length.
    """

    prompt: int
    sample: int
    token_ids: tuple[int, ...]
    log_probs: tuple[float | None, ...]
    think: str
    answer: str
    complete: bool
    truncated: bool


def rollout(
    engine: Engine,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: SamplingParams,
    seed: Sequence[int],
    *,
    journal: epath.Path | None = None,
    progress: Callable[[Sampled], None] = lambda sampled: None,
) -> list[Sampled]:
    """So many replies to each prompt, prompt by prompt.

    Args:
      sampling: of all; each reply has a seed of its own.
      seed: what the seeds are drawn from, with the numbers of prompt and reply.
      journal: a file of the replies that are finished. One that is there already is believed. Of several processes the
        first reads and writes it.
      progress: is told of each reply, also of those from the journal.
    """
    done = {(each.prompt, each.sample): each for each in _read(journal)}
    for each in done.values():
        progress(each)

    def requests() -> Iterator[Request]:
        for prompt in range(len(prompts)):
            for sample in range(samples):
                if (prompt, sample) not in done:
                    own = int(np.random.SeedSequence((*seed, prompt, sample)).generate_state(1)[0])
                    params = dataclasses.replace(sampling, seed=own)
                    yield Request(prompts[prompt].conversation, params, id=f"{prompt}/{sample}")

    for event in engine.generate(requests()):
        if isinstance(event, Finished):
            sampled = _sampled(event)
            done[sampled.prompt, sampled.sample] = sampled
            if journal is not None and is_first():
                _append(journal, sampled)
            progress(sampled)
    return [done[prompt, sample] for prompt in range(len(prompts)) for sample in range(samples)]


def _sampled(event: Finished) -> Sampled:
    completion = event.completion
    prompt, sample = map(int, completion.request_id.split("/"))
    return Sampled(
        prompt,
        sample,
        completion.token_ids,
        completion.log_probs,
        completion.think,
        completion.answer,
        completion.complete,
        completion.finish_reason == "length",
    )


def _append(journal: epath.Path, sampled: Sampled):
    with journal.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(sampled)) + "\n")


def _read(journal: epath.Path | None) -> Iterable[Sampled]:
    """The whole lines of a journal; the last one may have been cut off."""
    if journal is None:
        return

    def find() -> str:
        text = journal.read_text() if journal.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            journal.write_text(whole)
        return whole

    for line in of_first(find).splitlines():
        values = json.loads(line)
        lists = {name: tuple(values[name]) for name in ("token_ids", "log_probs")}
        yield Sampled(**(values | lists))


def to_example(sampled: Sampled, prompt: Prepared) -> Example:
    """Prompt and reply as a row's example; trained are the tokens that the policy chose."""
    reply = np.asarray(sampled.token_ids, np.int32)
    chosen = np.array([log_prob is not None for log_prob in sampled.log_probs], bool)
    tokens = np.concatenate([prompt.token_ids, reply])
    mask = np.concatenate([np.zeros(len(prompt.token_ids), bool), chosen])
    return Example(Rendered(tokens, mask, prompt.spans), prompt.chunks)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of a batch of rollouts.

    Attributes:
      rows: of a batch. length: tokens of a row. sound_rows, sound_samples: rows of sound that go with it, and their
        samples.
      shards: equal shares of the rows over a mesh.
      share_prompts: a prompt is laid down once for the replies to it that follow in its row.
    """

    rows: int
    length: int
    sound_rows: int
    sound_samples: int
    shards: int = 1
    share_prompts: bool = False


@dataclasses.dataclass(frozen=True)
class Packed:
    """A batch, and which samples are in it.

    Attributes:
      items: [rows][segments], of segments 1, 2, … the number of the sample.
      ends: [rows][segments], the place after its last token.
    """

    batch: Batch
    items: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]

    def spread(self, values: Sequence[Sequence[float]]) -> np.ndarray:
        """Numbers of each sample's reply tokens, in the places before them, where they are predicted; 0 elsewhere."""
        placed = np.zeros(self.batch.tokens.shape, np.float32)
        for row, items in enumerate(self.items):
            for item, end in zip(items, self.ends[row], strict=True):
                placed[row, end - len(values[item]) - 1 : end - 1] = values[item]
        return placed

    def segments(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """One number of each sample, [rows, S], segment 1 first; 0 where there is no segment, or it is a prompt."""
        placed = np.zeros((len(self.items), max(1, int(self.batch.segment_ids.max()))), np.float32)
        for row, items in enumerate(self.items):
            placed[row, : len(items)] = [values[item] for item in items]
        return placed


class _SoundRoom:
    """What sound a share of a batch still has room for, in whatever order it will be laid out."""

    def __init__(self, rows: int, row_units: int):
        self._rows, self._row_units = rows, row_units
        self._units: dict[int, int] = {}  # by identity of a chunk

    def fits(self, chunks: Sequence[np.ndarray]) -> bool:
        needed = list((self._units | self._needs(chunks)).values())
        # First fit finds a row as long as one is left with room for the largest chunk.
        spare = max(needed, default=1) - 1
        return sum(needed) <= max(self._row_units * (self._rows > 0), self._rows * (self._row_units - spare))

    def add(self, chunks: Sequence[np.ndarray]):
        self._units |= self._needs(chunks)

    def _needs(self, chunks: Sequence[np.ndarray]) -> dict[int, int]:
        return {id(chunk): int(units(len(chunk))) for chunk in chunks}


class _Filling:
    """A batch that is being filled."""

    def __init__(self, layout: Layout):
        self.rows: list[list[int]] = [[] for _ in range(layout.rows)]
        self._last: list[int | None] = [None] * layout.rows  # the prompt of a row's last sample
        self._room = [layout.length] * layout.rows
        each = layout.sound_rows // layout.shards, layout.sound_samples // UNIT_SAMPLES
        self._sound = [_SoundRoom(*each) for _ in range(layout.shards)]
        self._shards = layout.shards

    def take(self, number: int, example: Example, prompt: int | None, shared: int) -> bool:
        """Puts an example into the row that it leaves least room in; False: none has any.

        Args:
          prompt, shared: so many of its tokens need no room where they are there already, the prompt of this number.
        """
        needs = [example.num_tokens - (shared if prompt is not None and last == prompt else 0) for last in self._last]
        fits = [
            row for row, left in enumerate(self._room) if left >= needs[row] and self._share(row).fits(example.chunks)
        ]
        if not fits:
            return False
        row = min(fits, key=lambda row: (needs[row], self._room[row]))
        self.rows[row].append(number)
        self._room[row] -= needs[row]
        self._last[row] = prompt
        self._share(row).add(example.chunks)
        return True

    def _share(self, row: int) -> _SoundRoom:
        return self._sound[row * self._shards // len(self.rows)]


def pack_rows(
    examples: Sequence[Example], layout: Layout, prompts: Sequence[tuple[int, int]] | None = None
) -> list[Packed]:
    """Batches of one shape. Samples keep their order, and go to the row of a batch that they leave least room in; the
    next batch begins where none has room. So those of one prompt are together, and share its sound.

    Args:
      prompts: of each sample the number of its prompt, and how many tokens that has: with `layout.share_prompts` it is
        laid down once for all that follow it in a row. Only its last token, which predicts a reply's first, is each
        sample's own.

    Raises:
      ValueError: a sample that is longer than a row, or has more sound than goes with a batch.
    """
    of: list[tuple[int | None, int]] = [(None, 0)] * len(examples)
    if layout.share_prompts and prompts is not None:
        of = [(prompt, tokens - 1) for prompt, tokens in prompts]
    batches: list[_Filling] = []
    for number, example in enumerate(examples):
        if example.num_tokens > layout.length:
            raise ValueError(
                f"rl.row_tokens: expected at least {example.num_tokens}, which a sample has, found {layout.length}"
            )
        if batches and batches[-1].take(number, example, *of[number]):
            continue
        batches.append(_Filling(layout))
        if not batches[-1].take(number, example, *of[number]):
            raise ValueError(
                f"rl.sound_units: expected room for the {example.sound_units} units of 80 ms that a sample has, found "
                f"{layout.sound_rows} rows of {layout.sound_samples // UNIT_SAMPLES} for {layout.shards} shards"
            )
    return [_packed([_pieces(items, examples, of) for items in filling.rows], layout) for filling in batches]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What follows another in a row: a sample's tokens from number `start` on, or, of no sample, a prompt's."""

    sample: int | None
    start: int
    example: Example


def _pieces(items: Sequence[int], examples: Sequence[Example], of: Sequence[tuple[int | None, int]]) -> list[_Piece]:
    """A row's samples in pieces: those that share nothing whole, of others the prompt once and what follows it."""
    made, laid = [], None
    for item in items:
        prompt, shared = of[item]
        if shared and prompt != laid:
            made.append(_Piece(None, 0, _part(examples[item], slice(0, shared))))
        made.append(_Piece(item, shared, _part(examples[item], slice(shared, None))))
        laid = prompt
    return made


def _part(example: Example, which: slice) -> Example:
    """Some of an example's tokens; sound is in the first ones."""
    if not which.start and which.stop is None:
        return example
    rendered = example.rendered
    spans, chunks = ((), ()) if which.start else (rendered.spans, example.chunks)
    kept = Rendered(rendered.token_ids[which], rendered.loss_mask[which], spans)
    return dataclasses.replace(example, rendered=kept, chunks=chunks)


def _packed(rows: list[list[_Piece]], layout: Layout) -> Packed:
    """The arrays of a batch of such rows: samples are segments 1, 2, …, prompts those after."""
    batch = collate(
        [[piece.example for piece in row] for row in rows],
        length=layout.length,
        sound_rows=layout.sound_rows,
        sound_samples=layout.sound_samples,
        shards=layout.shards,
    )
    groups, every_item, every_end = np.zeros_like(batch.segment_ids), [], []
    for number, row in enumerate(rows):
        items, ends, begin, group = [], [], 0, 0
        samples = sum(piece.sample is not None for piece in row)
        for piece in row:
            own = slice(begin, begin + piece.example.num_tokens)
            if piece.sample is None:
                group += 1
                batch.segment_ids[number, own], groups[number, own] = samples + group, -group
            else:
                items.append(piece.sample)
                ends.append(own.stop)
                batch.segment_ids[number, own], groups[number, own] = len(items), group if piece.start else 0
            batch.positions[number, own] += piece.start
            begin = own.stop
        every_item.append(tuple(items))
        every_end.append(tuple(ends))
    shared = groups if layout.share_prompts else None
    return Packed(batch._replace(think_tokens=None, groups=shared), tuple(every_item), tuple(every_end))
