"""Cutting an example that is longer than its row."""

from __future__ import annotations

import dataclasses

from stepaudio_jax.data.examples import Example
from stepaudio_jax.text import Rendered


def truncate(example: Example, length: int) -> Example:
    """The example's first tokens, at most `length`, with the chunks that belong to them.

    An audio span is kept whole, from its `<audio_start>` to its `<audio_end>`, or goes whole with all that follows.
    """
    rendered = example.rendered
    if example.num_tokens <= length:
        return example
    spans = rendered.spans
    for start, count in spans:
        if start - 1 < length < start + count + 1:
            length = start - 1
    kept = sum(start + count + 1 <= length for start, count in spans)
    thinks = tuple((start, min(count, length - start)) for start, count in rendered.thinks if start < length)
    cut = Rendered(rendered.token_ids[:length], rendered.loss_mask[:length], spans[:kept], thinks)
    return dataclasses.replace(example, rendered=cut, chunks=example.chunks[:kept])
