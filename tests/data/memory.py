"""A data set in memory with what a stored one offers, and ways to look at batches."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.data import encode
from stepaudio_jax.data.lengths import HAS_AUDIO, HAS_THINK, Rendering
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.text import Audio, Conversation, assistant, human
from tests import small

SHA256 = "5" * 64
MEASURED = {"tokenizer_sha256": SHA256, "rendering": dataclasses.asdict(Rendering())}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Samples; those at `broken` cannot be read. Columns [N]."""

    samples: Sequence[Sample]
    tokens: np.ndarray
    rejected_tokens: np.ndarray
    kind: np.ndarray
    info: dict
    broken: frozenset[int] = frozenset()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index in self.broken:
            raise RecordError(f"{self.samples[index].where}: the bytes are damaged")
        return self.samples[index]


def stored(samples: Sequence[Sample], **fields) -> Memory:
    def tokens(conversation):
        return encode(conversation, small.tokenizer()).num_tokens if conversation else 0

    def kind(sample):
        think = any(turn.think for turn in sample.conversation.turns)
        return HAS_AUDIO * bool(sample.conversation.audio) + HAS_THINK * think

    columns = {
        "tokens": np.array([tokens(sample.conversation) for sample in samples], np.int32),
        "rejected_tokens": np.array([tokens(sample.rejected) for sample in samples], np.int32),
        "kind": np.array([kind(sample) for sample in samples], np.uint8),
        "info": MEASURED,
    }
    return Memory(samples, **(columns | fields))


def dialogue(number: int, words: int = 5, sounds: Sequence[float] = (), think: str | None = None) -> Sample:
    """A dialogue that says its number, with clips of so many seconds each."""
    clips = [Audio(small.sound(seconds, seed=number)) for seconds in sounds]
    reply = assistant(f"{number}" + " tone" * words, think=think)
    return Sample(Conversation((human(*clips, f"number {number}?"), reply)), where=f"memory:{number}")


def dialogues(n: int, seed: int = 0, start: int = 0) -> Memory:
    """Of several lengths, with none to two clips."""
    rng = np.random.default_rng(seed)
    sounds = [rng.uniform(0.1, 1.0, rng.integers(3)).tolist() for _ in range(n)]
    return stored([dialogue(start + i, int(rng.integers(2, 30)), sounds[i]) for i in range(n)])


def preference(number: int, better: int = 5, worse: int = 8) -> Sample:
    sides = [dialogue(number, words).conversation for words in (better, worse)]
    return Sample(*sides, where=f"memory:{number}")


def look(rows) -> list[list[tuple]]:
    """What can be compared of rows of examples."""
    return [
        [
            (
                example.source,
                example.rendered.token_ids.tolist(),
                example.rendered.loss_mask.tolist(),
                example.rendered.spans,
                [chunk.tobytes() for chunk in example.chunks],
            )
            for example in row
        ]
        for row in rows
    ]
