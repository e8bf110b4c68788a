"""Step-Audio: encoder and adaptor hear, the decoder reads text and sound in one sequence, and writes.

    samples ─ log-mel ─ encoder (25 Hz) ─ adaptor (12.5 Hz) ─┐ audio_slots
    tokens ─ embedding ──────────────────────────────────────┴─ decoder ─ logits

Shapes: B batch, T tokens, X chunks in the batch, W samples of the chunk bucket, A adaptor rows, E hidden_size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from stepaudio_jax.audio import log_mel
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.models.adaptor import Adaptor
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import AudioEncoder
from stepaudio_jax.models.layers import AnyArray
from stepaudio_jax.parallel.collectives import join, shard_of


class AudioInput(NamedTuple):
    """The sound of a batch: its chunks, and where each feature goes.

    Attributes:
      samples: [X, W] float32 at 16 kHz, each chunk padded to the bucket.
      lengths: [X] samples of each chunk; 0 for an empty place.
      slots: [B, T] for each token the row of the chunks' features, counted over all chunks ([X · A] rows), that
        takes its place, or −1 for a token of text. Where rows and chunks are split over shards, a row's chunks are
        among the same share of the chunks as the row of the rows (data.collate's `shards`).
    """

    samples: Float[AnyArray, "X W"]
    lengths: Int[AnyArray, " X"]
    slots: Int[AnyArray, "B T"]


def _of_own_rows(features: Float[Array, "X A E"], slots: Int[AnyArray, "B T"]) -> tuple[Array, Int[AnyArray, "B T"]]:
    """The features that a shard's rows may hear, and their slots counted from its first.

    The shards of one share of the rows (along context and tensor) have each encoded some of that share's chunks.
    """
    features = join(features, "chunks", axis=0, keep="batch")
    shard, shards = shard_of("batch")
    return features, slots if shards == 1 else slots - shard * features.shape[0] * features.shape[1]


class StepAudio(nnx.Module):
    def __init__(self, config: StepAudioConfig, rngs: nnx.Rngs, *, dtype=jnp.float32):
        self.config = config
        self.encoder = AudioEncoder(config.audio, rngs, dtype=dtype)
        self.adaptor = Adaptor(config.audio, rngs, dtype=dtype)
        self.decoder = Decoder(config.decoder, rngs, dtype=dtype)

    def encode_mel(
        self,
        mel: Float[AnyArray, "X F M"],
        lengths: Int[AnyArray, " X"],
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "X A E"]:
        """Audio features at 12.5 Hz from log-mel; rows beyond a chunk's own token count are not to be read."""
        return self.adaptor(self.encoder(mel, lengths, length_rule=length_rule, remat=remat))

    def encode_audio(
        self,
        samples: Float[AnyArray, "X W"],
        lengths: Int[AnyArray, " X"],
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "X A E"]:
        """Audio features at 12.5 Hz from waveforms."""
        samples, lengths = jnp.asarray(samples), jnp.asarray(lengths)
        return self.encode_mel(log_mel(samples, lengths), lengths, length_rule=length_rule, remat=remat)

    def embed(
        self, tokens: Int[AnyArray, "B T"], features: Float[Array, "X A E"] | None, slots: Int[AnyArray, "B T"] | None
    ) -> Float[Array, "B T E"]:
        """Token embeddings, with audio features in the places that `slots` names."""
        embeds = self.decoder.embed(tokens)
        if features is None or slots is None:
            return embeds
        rows = features.reshape(-1, features.shape[-1])
        heard = rows[jnp.maximum(slots, 0)].astype(embeds.dtype)
        return jnp.where((slots >= 0)[..., None], heard, embeds)

    def hidden(
        self,
        tokens: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        segment_ids: Int[AnyArray, "B T"],
        audio: AudioInput | None = None,
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "B T E"]:
        """The decoder's normed hidden states over a batch of sequences with any number of clips each."""
        features = slots = None
        if audio is not None:
            features = self.encode_audio(audio.samples, audio.lengths, length_rule=length_rule, remat=remat)
            features, slots = _of_own_rows(features, audio.slots)
        return self.decoder(self.embed(tokens, features, slots), positions, segment_ids, remat=remat)

    def __call__(self, *args, **kwargs) -> Float[Array, "B T V"]:
        """Float32 logits; arguments as `hidden`."""
        return self.decoder.logits(self.hidden(*args, **kwargs))
