"""What packing must know of a sample without reading it: measured once, when a data set is built."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

from etils import epath

from stepaudio_jax.audio import lengths
from stepaudio_jax.data.examples import encode
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.text import Conversation, Tokenizer

HAS_AUDIO = 1
HAS_THINK = 2
FRAMES_PER_UNIT = 8
"""Mel frames of an encoder unit, 80 ms: what one row of the adaptor comes from."""


@dataclasses.dataclass(frozen=True)
class Rendering:
    """The options of `data.encode` that change how long a dialogue is."""

    length_rule: str = "hf"
    template: str = "default"
    keep_think: bool = False


class Lengths(NamedTuple):
    """Attributes:
    tokens: of the rendered dialogue; rejected_tokens: of the one with the worse reply, 0 if there is none.
    units: encoder units of 80 ms that all chunks of both need.
    kind: bit flags, HAS_AUDIO and HAS_THINK: some assistant turn that is trained on has reasoning.
    """

    tokens: int
    rejected_tokens: int
    units: int
    kind: int


def measure(sample: Sample, tokenizer: Tokenizer, rendering: Rendering) -> Lengths:
    """Raises RecordError: a dialogue that cannot be rendered."""
    sides = [sample.conversation] + ([sample.rejected] if sample.rejected else [])
    try:
        examples = [encode(side, tokenizer, **dataclasses.asdict(rendering)) for side in sides]
    except ValueError as error:
        raise RecordError(f"{sample.where}: {error}") from None
    units = sum(encoder_units(len(piece)) for example in examples for piece in example.chunks)
    thinks = any(_has_trained_think(side, rendering.keep_think) for side in sides)
    kind = HAS_AUDIO * bool(units) + HAS_THINK * thinks
    return Lengths(examples[0].num_tokens, sum(other.num_tokens for other in examples[1:]), units, kind)


def encoder_units(samples: int) -> int:
    """Units that a chunk takes beside others in one row: its mel frames, and two that keep it from its neighbours."""
    return -(-(lengths.mel_frames(samples) + 2) // FRAMES_PER_UNIT)


def tokenizer_sha256(folder: epath.PathLike) -> str:
    """Of a folder's tokenizer.json: lengths hold for one tokenizer only."""
    return hashlib.sha256((epath.Path(folder) / "tokenizer.json").read_bytes()).hexdigest()


def _has_trained_think(conversation: Conversation, keep_think: bool) -> bool:
    replies = [turn for turn in conversation.turns if turn.role == "assistant"]
    ruled = replies if keep_think else replies[-1:]
    return any(bool(turn.think) and turn.loss is not False for turn in ruled)
