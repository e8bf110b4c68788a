"""Attention: the one place through which encoder, decoder, training and generation attend."""

from stepaudio_jax.kernels.attention import decode_attention, flash_attention

__all__ = ["decode_attention", "flash_attention"]
