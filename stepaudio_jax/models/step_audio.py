"""Step-Audio: encoder and adaptor hear, the decoder reads text and sound in one sequence, and writes.

    samples ─ log-mel ─ encoder (25 Hz) ─ adaptor (12.5 Hz) ─┐ audio_slots
    tokens ─ embedding ──────────────────────────────────────┴─ decoder ─ logits

Shapes: B batch, T tokens, X rows of sound in the batch, W samples of such a row, U its units of 80 ms, A adaptor rows
(U where a row holds several chunks), E hidden_size.
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
from stepaudio_jax.models.layers import AnyArray, Linear, matmul, whole
from stepaudio_jax.parallel.collectives import join, shard_of, sum_over


class AudioInput(NamedTuple):
    """The sound of a batch: rows of chunks (audio/rows.py), and where each feature goes.

    Attributes:
      samples: [X, W] float32 at 16 kHz, W = 1280 · U.
      sizes: [X, U] for each unit of 80 ms the samples of the chunk it belongs to, or 0.
      offsets: [X, U] its number within the chunk; or None where every row has one chunk, of `sizes` [X] samples.
      slots: [B, T] for each token the unit, counted over all rows ([X · A]), whose feature takes its place, or −1 for a
        token of text. Where batch and sound are split over shards, the sound of a batch's row lies in the same share of
        the rows of sound (data.collate's `shards`), over which alone its units are counted.
    """

    samples: Float[AnyArray, "X W"]
    sizes: Int[AnyArray, "X ..."]
    offsets: Int[AnyArray, "X U"] | None
    slots: Int[AnyArray, "B T"]


class StepAudio(nnx.Module):
    def __init__(self, config: StepAudioConfig, rngs: nnx.Rngs, *, dtype=jnp.float32):
        self.config = config
        self.encoder = AudioEncoder(config.audio, rngs, dtype=dtype)
        self.adaptor = Adaptor(config.audio, rngs, dtype=dtype)
        self.decoder = Decoder(config.decoder, rngs, dtype=dtype)
        self.value_head: Linear | None = nnx.data(None)

    def values(self, hidden: Float[Array, "B T E"]) -> Float[Array, "B T"]:
        """What a critic expects of the rest from each place on, float32."""
        head = self.value_head
        assert head is not None and head.bias is not None
        shard, shards = shard_of("vocab")  # each has all of the hidden states, and adds up a part of them
        own = jnp.arange(hidden.shape[-1]) * shards // hidden.shape[-1] == shard
        parts = matmul(jnp.where(own, hidden.astype(jnp.float32), 0), whole(head.kernel).astype(jnp.float32))
        return sum_over(parts[..., 0] + head.bias[...][0].astype(jnp.float32) / shards, "vocab")

    def encode_mel(
        self,
        mel: Float[AnyArray, "X F M"],
        sizes: Int[AnyArray, "X ..."],
        offsets: Int[AnyArray, "X U"] | None = None,
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "X A E"]:
        """Audio features at 12.5 Hz from log-mel; those beyond a chunk's own token count are not to be read.

        Args:
          sizes, offsets: where the chunks lie in the rows, as the encoder takes them.
        """
        return self.adaptor(self.encoder(mel, sizes, offsets, length_rule=length_rule, remat=remat))

    def encode_audio(
        self,
        samples: Float[AnyArray, "X W"],
        sizes: Int[AnyArray, "X ..."],
        offsets: Int[AnyArray, "X U"] | None = None,
        *,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "X A E"]:
        """Audio features at 12.5 Hz from waveforms."""
        samples, sizes = jnp.asarray(samples), jnp.asarray(sizes)
        mel = log_mel(samples, sizes, offsets)
        return self.encode_mel(mel, sizes, offsets, length_rule=length_rule, remat=remat)

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
        groups: Int[AnyArray, "B T"] | None = None,
        length_rule: str = "hf",
        remat: str = "none",
    ) -> Float[Array, "B T E"]:
        """The decoder's normed hidden states over a batch of sequences with any number of clips each."""
        features = slots = None
        if audio is not None:
            features = self.encode_audio(*audio[:3], length_rule=length_rule, remat=remat)
            # The shards of one share of the batch (along context and tensor) have each encoded some of its sound.
            features, slots = join(features, "chunks", axis=0, keep="batch"), audio.slots
        return self.decoder(self.embed(tokens, features, slots), positions, segment_ids, groups=groups, remat=remat)

    def __call__(self, *args, **kwargs) -> Float[Array, "B T V"]:
        """Float32 logits; arguments as `hidden`."""
        return self.decoder.logits(self.hidden(*args, **kwargs))


def make_critic(model: StepAudio, rngs: nnx.Rngs) -> None:
    """Gives a policy a linear value head in place of its language head; it begins by expecting 0 of everything.

    Every device holds the whole head: it is one column. (Cut along fsdp, its gradient would be a reduce-scatter that
    hangs on nothing but the loss, and XLA's CPU backend starts such a collective while those of the layers' loop still
    run, of which it does not tell it apart: eight fake devices waited for each other for ever.)
    """
    model.value_head = Linear(rngs, (model.config.decoder.hidden_size, 1), (None, None), bias=True)
    model.value_head.kernel[...] = jnp.zeros_like(model.value_head.kernel[...])
    model.decoder.lm_head = None
