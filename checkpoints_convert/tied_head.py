"""A model whose output matrix is its embedding (`tie_word_embeddings`) may store both, where they are equal."""

from __future__ import annotations

import numpy as np

from checkpoints_convert.sources import HfFolder, slabs

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def resolve_tied_head(source: HfFolder) -> list[str]:
    """Leaves the stored output matrix of a tied model out of a folder's tensors, or takes it for the embedding where
    that is not stored under its own name.

    Returns:
      What is wrong: the output matrix is not the embedding.
    """
    if HEAD not in source.tensors:
        return []
    if EMBEDDING not in source.tensors:
        if EMBEDDING not in source.unreadable:
            source.rename(HEAD, EMBEDDING)
        return []
    if not _equal(source):
        return [
            f"{source.folder}: {HEAD} differs from {EMBEDDING}, though the config says that they are one "
            "(tie_word_embeddings true); set it to false, or remove the tensor that is not meant"
        ]
    source.leave_out(HEAD)
    return []


def _equal(source: HfFolder) -> bool:
    """The same values; NaN is equal to itself."""
    embedding, head = (source.tensors[name] for name in (EMBEDDING, HEAD))
    if embedding.shape != head.shape:
        return False
    for start, stop in slabs(embedding):
        one, other = (source.read(name, start, stop) for name in (EMBEDDING, HEAD))
        if not np.array_equal(one.astype(np.float32), other.astype(np.float32), equal_nan=True):
            return False
    return True
