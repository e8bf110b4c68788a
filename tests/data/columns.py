"""Data sets of columns alone, for what only plans."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Columns:
    """A data set whose records cannot be read. Columns [N]."""

    tokens: np.ndarray
    rejected_tokens: np.ndarray
    kind: np.ndarray
    info: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        raise NotImplementedError


def columns(tokens, rejected_tokens=0, kind=0) -> Columns:
    tokens = np.asarray(tokens, np.int32)
    return Columns(
        tokens,
        np.broadcast_to(np.asarray(rejected_tokens, np.int32), tokens.shape),
        np.broadcast_to(np.asarray(kind, np.uint8), tokens.shape),
    )


def dialogues(n: int, seed: int = 0, kind=0) -> Columns:
    """Log-normal lengths of 50 to 4,000 tokens."""
    return columns(np.random.default_rng(seed).lognormal(6, 0.8, n).clip(50, 4000), kind=kind)
