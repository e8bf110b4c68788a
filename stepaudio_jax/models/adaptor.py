"""The adaptor: audio features from 25 Hz to 12.5 Hz, and from the encoder's width to the decoder's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stepaudio_jax.config import AudioEncoderConfig
from stepaudio_jax.models.encoder import gelu
from stepaudio_jax.models.layers import Conv, Linear


class Adaptor(nnx.Module):
    """conv (stride 2) → GELU → linear → ReLU → linear. The checkpoints spell it `adapter`."""

    def __init__(self, config: AudioEncoderConfig, rngs: nnx.Rngs, *, dtype=jnp.float32):
        state, middle = config.n_audio_state, config.adapter_state
        self.conv = Conv(rngs, (state, state), (None, "audio_embed"), stride=config.adapter_stride, dtype=dtype)
        self.linear1 = Linear(rngs, (state, middle), ("audio_embed", "audio_mlp"), bias=True, dtype=dtype)
        self.linear2 = Linear(rngs, (middle, config.llm_dim), ("audio_mlp", "embed"), bias=True, dtype=dtype)

    def __call__(self, x: Float[Array, "B P S"]) -> Float[Array, "B A E"]:
        """One row per audio token; rows beyond a chunk's own count are not zero and are not read."""
        return self.linear2(jax.nn.relu(self.linear1(gelu(self.conv(x)))))
