"""The arithmetic the model needs (a multiply and an add count two), whatever a program does besides.

Products of weights, and attention over the pairs that may meet; norms, activations and the front end are left out, as
is usual (PaLM, arXiv:2204.02311, appendix B). A backward pass needs twice the forward's.
"""

from __future__ import annotations

from stepaudio_jax.audio import lengths
from stepaudio_jax.config import AudioEncoderConfig, DecoderConfig


def causal_pairs(length: int) -> int:
    """Queries and keys that meet in a row of one segment."""
    return length * (length + 1) // 2


def decoder_flops(config: DecoderConfig, tokens: int, pairs: int, *, logits: int | None = None) -> float:
    """One forward pass of the decoder.

    Args:
      tokens: that go through the layers.
      pairs: of queries and keys that meet, in one head of one layer.
      logits: tokens of which logits are wanted; all by default.
    """
    wide, narrow = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden = config.hidden_size
    layer = 2 * tokens * (2 * hidden * (wide + narrow) + 3 * hidden * config.intermediate_size) + 4 * wide * pairs
    head = 2 * (tokens if logits is None else logits) * hidden * config.vocab_size
    return float(config.num_hidden_layers * layer + head)


def encoder_flops(config: AudioEncoderConfig, chunks: float, samples: int) -> float:
    """One forward pass of the encoder over chunks of so many samples at 16 kHz."""
    frames, steps, state = lengths.mel_frames(samples), lengths.conv_frames(samples), config.n_audio_state
    convolutions = 2 * 3 * state * (frames * config.n_mels + steps * state)
    layer = 2 * steps * 12 * state**2 + 4 * state * steps**2
    return float(chunks * (convolutions + config.n_audio_layer * layer))


def adaptor_flops(config: AudioEncoderConfig, chunks: float, samples: int) -> float:
    """One forward pass of the adaptor, likewise."""
    state, middle = config.n_audio_state, config.adapter_state
    rows = lengths.adaptor_frames(samples)
    return float(chunks * 2 * rows * (3 * state**2 + state * middle + middle * config.llm_dim))
