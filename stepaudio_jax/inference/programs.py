"""The jitted programs of generation, each compiled once per bucket: encode audio, prefill, decode.

A cache slot is a position: the key of position p lies in slot p. So a prompt padded on the right needs no mask (its
padding lies after every query until it is overwritten), and going back to an earlier position costs nothing.

Prefill runs all tokens of a prompt but the last, which the first decode step runs; one program samples, always.

Over a mesh each program is one `jax.shard_map`: rows, heads and, for long prompts, the tokens of a row are split as
parallel/rules.py says. Tokens split over shards are dealt out in stripes, and so are the cache's slots.

Shapes: B rows, T prompt bucket, K steps per burst, R feature rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from stepaudio_jax.inference.sampling import SamplingArrays, sample
from stepaudio_jax.kernels import stripe
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.layers import AnyArray, logical_axes
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.parallel.collectives import join, max_over
from stepaudio_jax.parallel.rules import inside

CACHE_AXES = ("layers", "batch", "kv_heads", "length", None)


class Burst(NamedTuple):
    """What K decode steps give: tokens [B, K], their log-probs [B, K], how many steps ran, and the cache."""

    tokens: Int[Array, "B K"]
    log_probs: Float[Array, "B K"]
    steps: Int[Array, ""]
    cache: Any


class Programs:
    """Compiled functions over one model's weights. `compilations` counts what has been compiled so far."""

    def __init__(
        self,
        model: StepAudio,
        *,
        vocab_size: int,
        steps: int,
        length_rule: str = "hf",
        rules: ShardingRules | None = None,
    ):
        """
        Args:
          rules: the mesh; the model's parameters lie where they say.
        """
        self.graphdef, variables = nnx.split(model)
        self.state = nnx.to_pure_dict(variables)
        self.vocab_size, self.steps, self.length_rule = vocab_size, steps, length_rule
        self.rules = rules if rules is not None and rules.axes else None
        self.axes = logical_axes(variables)
        self.specs = self.rules.specs(self.axes) if self.rules else None
        self._encode = jax.jit(self.encode_fn)
        self._prefill = jax.jit(self.prefill_fn, static_argnames="cache_length")
        self._decode = jax.jit(self.decode_fn, donate_argnames="cache")
        self._grow = jax.jit(self.grow_fn, static_argnames="cache_length")

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

    def shards(self, name: str) -> int:
        """Into how many parts a logical axis ("batch", "length", "chunks") is split; sizes must be multiples."""
        return self.rules.size(self.rules.split(name)) if self.rules else 1

    def _over_mesh(self, fn: Callable, in_axes: tuple, out_axes: Any) -> Callable:
        """fn(state, *arrays) shard by shard. `in_axes` and `out_axes` are trees of logical axes, as the arrays are
        (see `ShardingRules.specs`)."""
        if (rules := self.rules) is None:
            return fn

        def body(*arrays):
            with inside(rules):
                return fn(*arrays)

        return jax.shard_map(
            body,
            mesh=rules.mesh,
            in_specs=(self.specs, *map(rules.specs, in_axes)),
            out_specs=rules.specs(out_axes),
            check_vma=False,  # nothing is differentiated, which is what that is for
        )

    def encode_fn(self, state, samples, lengths):
        count, shards = len(samples), self.shards("chunks")
        extra = -count % shards
        samples, lengths = (jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) for x in (samples, lengths))

        def encode(state, samples, lengths):
            return self._model(state).encode_audio(samples, lengths, length_rule=self.length_rule)

        chunks = ("chunks", None), ("chunks",)
        return self._over_mesh(encode, chunks, ("chunks", None, None))(state, samples, lengths)[:count]

    def prefill_fn(self, state, tokens, slots, features, cache_length: int):
        shards = self.shards("length")
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        tokens, slots, positions = (stripe(jnp.asarray(x), shards) for x in (tokens, slots, positions))
        rows = ("batch", "length")

        def prefill(state, tokens, slots, positions, *features):
            cache = self._prefill_shard(state, tokens, slots, positions, *features)
            return self._lengthen(cache, cache_length // shards)

        heard = () if features is None else (features,)
        over_mesh = self._over_mesh(prefill, (rows,) * 3 + ((),) * len(heard), (CACHE_AXES, CACHE_AXES))
        return over_mesh(state, tokens, slots, positions, *heard)

    def _prefill_shard(self, state, tokens, slots, positions, features=None):
        model = self._model(state)
        embeds = model.embed(tokens, None if features is None else features[None], slots)

        def together(embeds):
            return model.decoder(embeds, positions, return_kv=True)[1]

        if self.rules is not None:
            return together(embeds)

        def few_at_a_time(embeds):
            # Products of some 512 rows run a quarter faster on a CPU than those of thousands.
            def one(row):
                _, cache = model.decoder(row[None], positions[:1], return_kv=True)
                return jax.tree.map(lambda a: a.squeeze(-4), cache)

            cache = jax.lax.map(one, embeds, batch_size=max(1, 512 // tokens.shape[1]))
            return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -4), cache)

        return jax.lax.platform_dependent(embeds, cpu=few_at_a_time, default=together)

    def grow_fn(self, cache, cache_length: int):
        def grow(_, cache):
            return self._lengthen(cache, cache_length // self.shards("length"))

        both = (CACHE_AXES, CACHE_AXES)
        return self._over_mesh(grow, (both,), both)({}, cache)

    @staticmethod
    def _lengthen(cache, cache_length: int):
        return jax.tree.map(
            lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, cache_length - a.shape[-2]), (0, 0)]), cache
        )

    def decode_fn(self, state, cache, tokens, positions, live, forced, stop_ids, seen, params, wanted):
        row: Any = ("batch",)
        table: Any = ("batch", None)
        cache_axes = (CACHE_AXES, CACHE_AXES)
        in_axes = (cache_axes, row, row, row, table, table, table, SamplingArrays(*[row] * 6), ())
        everywhere: Any = ()  # tokens and log-probs: every process reads all of them
        out_axes = Burst(everywhere, everywhere, everywhere, cache_axes)
        decode = self._over_mesh(self._decode_shard, in_axes, out_axes)
        return decode(state, cache, tokens, positions, live, forced, stop_ids, seen, params, wanted)

    def _decode_shard(self, state, cache, tokens, positions, live, forced, stop_ids, seen, params, wanted):
        model = self._model(state)
        rows = jnp.arange(tokens.shape[0])

        def anyone(live):
            return max_over(live.any().astype(jnp.int32), "batch") > 0  # every shard runs as many steps

        def unfinished(carry):
            i, more, *_ = carry
            return (i < wanted) & more

        def step(carry):
            i, _, cache, tokens, live, seen, out_tokens, out_log_probs = carry
            at = positions + i
            hidden, cache = model.decoder.extend(model.decoder.embed(tokens[:, None]), at[:, None], cache)
            logits = model.decoder.logits(hidden[:, 0])
            chosen, log_probs = sample(logits, params, seen, at + 1, self.vocab_size)
            chosen = jnp.where(forced[:, i] >= 0, forced[:, i], chosen)
            live &= ~(chosen[:, None] == stop_ids).any(-1)
            seen = seen.at[rows, chosen].set(True)
            out_tokens = out_tokens.at[:, i].set(chosen)
            out_log_probs = out_log_probs.at[:, i].set(log_probs[rows, chosen])
            return i + 1, anyone(live), cache, chosen, live, seen, out_tokens, out_log_probs

        empty = jnp.zeros((tokens.shape[0], self.steps))
        live = jnp.asarray(live)
        carry = (jnp.int32(0), anyone(live), cache, tokens, live, seen, empty.astype(jnp.int32), empty)
        steps, _, cache, _, _, _, out_tokens, out_log_probs = jax.lax.while_loop(unfinished, step, carry)
        return Burst(join(out_tokens, "batch", axis=0), join(out_log_probs, "batch", axis=0), steps, cache)
