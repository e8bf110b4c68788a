"""Prompts that are too long: what is said of them, and of the ways out."""

from __future__ import annotations

import math

from stepaudio_jax.config import DecoderConfig


class PromptError(ValueError):
    """A request that cannot be answered; the message says by how much and what to do."""


def too_long(
    size: int,
    heard: int,
    seconds: float,
    decoder: DecoderConfig,
    *,
    reply: int,
    length: int,
    pages: int,
    page_size: int,
) -> PromptError:
    """The refusal of a prompt of `size` tokens.

    Args:
      heard, seconds: its tokens of sound, and how much sound that is.
      reply: tokens that the reply may have.
      length: positions of prompt and reply.
      pages: of `page_size` tokens, for all of it.
    """
    ways = []
    if length <= size < decoder.max_position_embeddings:
        ways.append(f"allow more of the model's {decoder.max_position_embeddings} positions (EngineOptions.max_length)")
    elif size >= length and (factor := sufficient_yarn(size + reply, decoder)):
        ways.append(
            f"load the model with yarn_factor={factor:g} (--yarn-factor {factor:g}), which was no part of the release"
        )
    if size >= pages * page_size:
        ways.append(f"give the cache room for {-(-(size + reply) // page_size)} pages (EngineOptions.memory)")
    if heard:
        ways.append('let it be heard in windows with long_audio="split" (--long-audio split)')
    ways.append("ask about a shorter piece")
    return PromptError(
        f"the prompt has {size} tokens, {heard} of them audio ({seconds:.0f} s), but there is room for "
        f"{min(length, pages * page_size)} ({length} positions, {pages} pages of {page_size} tokens); "
        f"{', or '.join(ways)}"
    )


def sufficient_yarn(tokens: int, decoder: DecoderConfig) -> float | None:
    """The least factor, in tenths, with which this decoder has so many positions; None where YaRN cannot give them."""
    scaling = decoder.rope_scaling
    if scaling is not None and scaling.rope_type != "yarn":
        return None
    trained = (scaling and scaling.original_max_position_embeddings) or decoder.max_position_embeddings
    factor = math.ceil(10 * tokens / trained) / 10
    return factor if int(trained * factor) > decoder.max_position_embeddings else None
