"""The jitted programs of generation, each compiled once per bucket: encode audio, prefill, decode.

A cache slot is a position: the key of position p lies in slot p. So a prompt padded on the right needs no mask (its
padding lies after every query until it is overwritten), and going back to an earlier position costs nothing.

Prefill runs all tokens of a prompt but the last, which the first decode step runs; one program samples, always.

Shapes: B rows, T prompt bucket, K steps per burst, R feature rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.inference.sampling import SamplingArrays, sample
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import AnyArray


class Burst(NamedTuple):
    """What K decode steps give: tokens [B, K], their log-probs [B, K], how many steps ran, and the cache."""

    tokens: Int[Array, "B K"]
    log_probs: Float[Array, "B K"]
    steps: Int[Array, ""]
    cache: Any


class Programs:
    """Compiled functions over one model's weights. `compilations` counts what has been compiled so far."""

    def __init__(self, model: StepAudio, *, vocab_size: int, steps: int, length_rule: str = "hf"):
        self.graphdef, self.state = nnx.split(model)
        self.vocab_size, self.steps, self.length_rule = vocab_size, steps, length_rule
        self._encode = jax.jit(self._encode_fn)
        self._prefill = jax.jit(self._prefill_fn, static_argnames="cache_length")
        self._decode = jax.jit(self._decode_fn, donate_argnames="cache")
        self._grow = jax.jit(self._grow_fn, static_argnames="cache_length")

    @property
    def compilations(self) -> int:
        jitted = (self._encode, self._prefill, self._decode, self._grow)
        return sum(program._cache_size() for program in jitted)  # pyright: ignore[reportAttributeAccessIssue]

    def encode(self, samples: Float[AnyArray, "X W"], lengths: Int[AnyArray, " X"]) -> Float[Array, "X A E"]:
        """Audio features of chunks in one bucket shape."""
        return self._encode(self.state, samples, lengths)

    def prefill(
        self,
        tokens: Int[AnyArray, "B T"],
        slots: Int[AnyArray, "B T"],
        features: Float[AnyArray, "R E"] | None,
        cache_length: int,
    ) -> Any:
        """A cache of `cache_length` slots that holds the prompts."""
        return self._prefill(self.state, tokens, slots, features, cache_length=cache_length)

    def decode(
        self,
        cache: Any,
        tokens: Int[AnyArray, " B"],
        positions: Int[AnyArray, " B"],
        live: Bool[AnyArray, " B"],
        forced: Int[AnyArray, "B K"],
        stop_ids: Int[AnyArray, "B S"],
        seen: Bool[AnyArray, "B V"],
        params: SamplingArrays,
        wanted: int,
    ) -> Burst:
        """Up to K steps, fewer when every live row has met one of its stop ids or `wanted` have run.

        Args:
          cache: given away; use the one that comes back.
          tokens, positions: each row's last token and where it stands.
          live: rows that still want tokens.
          forced: tokens to put in place of sampled ones, −1 for none.
          stop_ids: padded with −1.
          seen: tokens in prompt and reply, for the repetition penalty.
        """
        return self._decode(self.state, cache, tokens, positions, live, forced, stop_ids, seen, params, wanted)

    def grow(self, cache: Any, cache_length: int) -> Any:
        """The same cache with more slots."""
        return self._grow(cache, cache_length=cache_length)

    def _model(self, state) -> StepAudio:
        return nnx.merge(self.graphdef, state)

    def _encode_fn(self, state, samples, lengths):
        return self._model(state).encode_audio(samples, lengths, length_rule=self.length_rule)

    def _prefill_fn(self, state, tokens, slots, features, cache_length: int):
        model = self._model(state)
        embeds = model.embed(tokens, None if features is None else features[None], slots)
        positions = jnp.arange(tokens.shape[1])[None]

        def together(embeds):
            return model.decoder(embeds, jnp.broadcast_to(positions, tokens.shape), return_kv=True)[1]

        def few_at_a_time(embeds):
            # Products of some 512 rows run a quarter faster on a CPU than those of thousands.
            def one(row):
                _, cache = model.decoder(row[None], positions, return_kv=True)
                return jax.tree.map(lambda a: a.squeeze(-4), cache)

            cache = jax.lax.map(one, embeds, batch_size=max(1, 512 // tokens.shape[1]))
            return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -4), cache)

        cache = jax.lax.platform_dependent(embeds, cpu=few_at_a_time, default=together)
        return self._grow_fn(cache, cache_length)

    def _grow_fn(self, cache, cache_length: int):
        return jax.tree.map(
            lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, cache_length - a.shape[-2]), (0, 0)]), cache
        )

    def _decode_fn(self, state, cache, tokens, positions, live, forced, stop_ids, seen, params, wanted):
        model = self._model(state)
        rows = jnp.arange(tokens.shape[0])

        def unfinished(carry):
            i, _, _, live, *_ = carry
            return (i < wanted) & live.any()

        def step(carry):
            i, cache, tokens, live, seen, out_tokens, out_log_probs = carry
            at = positions + i
            hidden, cache = model.decoder.extend(model.decoder.embed(tokens[:, None]), at[:, None], cache)
            logits = model.decoder.logits(hidden[:, 0])
            chosen, log_probs = sample(logits, params, seen, at + 1, self.vocab_size)
            chosen = jnp.where(forced[:, i] >= 0, forced[:, i], chosen)
            live &= ~(chosen[:, None] == stop_ids).any(-1)
            seen = seen.at[rows, chosen].set(True)
            out_tokens = out_tokens.at[:, i].set(chosen)
            out_log_probs = out_log_probs.at[:, i].set(log_probs[rows, chosen])
            return i + 1, cache, chosen, live, seen, out_tokens, out_log_probs

        empty = jnp.zeros((tokens.shape[0], self.steps))
        carry = (jnp.int32(0), cache, tokens, live, seen, empty.astype(jnp.int32), empty)
        steps, cache, _, _, _, out_tokens, out_log_probs = jax.lax.while_loop(unfinished, step, carry)
        return Burst(out_tokens, out_log_probs, steps, cache)
