"""Attention: the one place through which encoder, decoder, training and generation attend."""

from stepaudio_jax.kernels.attention import check_segment_ids, flash_attention
from stepaudio_jax.kernels.paged_attention import paged_attention, write_pages
from stepaudio_jax.kernels.ring_attention import ring_attention, stripe, unstripe

__all__ = [
    "check_segment_ids",
    "flash_attention",
    "paged_attention",
    "ring_attention",
    "stripe",
    "unstripe",
    "write_pages",
]
