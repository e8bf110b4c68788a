"""The jitted programs of the engine, each compiled once per bucket: hear, prefill, decode, mark.

Keys and values of all rows lie in one pool of pages, features of sound in one cache; both are given to every program
and come back changed. Where a row stands is a number, so going back to an earlier position costs nothing.

Prefill runs all tokens of a prompt but the last, which the first decode step runs; one program samples, always.

Over a mesh each program is one `jax.shard_map`. Shares of the rows ("lanes") each have a pool of their own, of which
each shard of the heads holds its heads' part; features are whole everywhere.

Shapes: R rows, Q new tokens of a row, M pages of a row, K steps of a burst, X chunks of W samples, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from stepaudio_jax.inference.sampling import Distribution, SamplingArrays, sample
from stepaudio_jax.inference.sounds import ROWS
from stepaudio_jax.inference.types import MAX_TOP_LOG_PROBS
from stepaudio_jax.models import StepAudio
from stepaudio_jax.models.decoder import PagedCache
from stepaudio_jax.models.layers import AnyArray, logical_axes
from stepaudio_jax.parallel import ShardingRules
from stepaudio_jax.parallel.collectives import join, max_over
from stepaudio_jax.parallel.rules import inside

POOL_AXES = ("batch", None, None, "kv_heads", None)
SCALE_AXES = ("layers", "kv_heads", None)
SEEN_AXES = ("batch", None, None)
ROW: Any = ("batch",)
TABLE: Any = ("batch", None)
WHOLE: Any = ()

STOP_IDS = 8
MARKED_AT_ONCE = 1024


class Memory(NamedTuple):
    """What lies on the device between calls.

    Attributes:
      pages: [lanes, layers · P, S, 2 · N, D], the key/value pool of each lane.
      scale: of the pool where it is quantised, [layers, 2 · N, D].
      features: [entries · ROWS, E] of chunks of sound.
      seen: [lanes, places, V], which tokens are in the prompt or the reply of the row in that place, for the
        repetition penalty.
    """

    pages: Any
    scale: Any
    features: Any
    seen: Any


class Rows(NamedTuple):
    """The rows of a decode burst.

    Attributes:
      tokens, positions: each row's last token and where it stands.
      steps: how many tokens a row wants and has pages for; 0 for no row.
      forced: tokens to put in place of sampled ones, −1 for none.
      stop_ids: padded with −1.
      places: of the rows in `Memory.seen`.
    """

    tokens: Int[AnyArray, " R"]
    positions: Int[AnyArray, " R"]
    steps: Int[AnyArray, " R"]
    forced: Int[AnyArray, "R K"]
    stop_ids: Int[AnyArray, "R 8"]
    places: Int[AnyArray, " R"]
    page_table: Int[AnyArray, "R M"]
    sampling: SamplingArrays


ROWS_AXES = Rows(ROW, ROW, ROW, TABLE, TABLE, ROW, TABLE, SamplingArrays(*[ROW] * len(SamplingArrays._fields)))


class Burst(NamedTuple):
    """What K decode steps give; entries after a row's end mean nothing.

    Attributes:
      steps: how many ran.
      top_ids, top_log_probs: the likeliest tokens, where any row wants them.
    """

    tokens: Int[Array, "R K"]
    log_probs: Float[Array, "R K"]
    steps: Int[Array, ""]
    top_ids: Int[Array, "R K 20"]
    top_log_probs: Float[Array, "R K 20"]


class Functions:
    """The jitted programs of one model structure. They take the weights as an argument, so that every engine of that
    structure in a process shares them, and compiles nothing again."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        axes: Any,
        rules: ShardingRules | None,
        vocab_size: int,
        steps: int,
        length_rule: str,
    ):
        self.graphdef, self.rules = graphdef, rules
        self.vocab_size, self.steps, self.length_rule = vocab_size, steps, length_rule
        self.specs = rules.specs(axes) if rules else None
        self.hear = jax.jit(self.hear_fn, donate_argnames="features")
        self.prefill = jax.jit(self.prefill_fn, donate_argnames="pages")
        self.decode = jax.jit(self.decode_fn, donate_argnames=("pages", "seen"))
        self.mark = jax.jit(self.mark_fn, donate_argnames="seen")

    @property
    def compilations(self) -> int:
        jitted = (self.hear, self.prefill, self.decode, self.mark)
        return sum(program._cache_size() for program in jitted)  # pyright: ignore[reportAttributeAccessIssue]

    def _model(self, state) -> StepAudio:
        return nnx.merge(self.graphdef, state)

    def shards(self, name: str) -> int:
        """Into how many parts a logical axis ("batch", "chunks") is split; sizes must be multiples."""
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

    def hear_fn(self, state, features, samples, sizes, places):
        extra = -len(samples) % self.shards("chunks")
        samples, sizes = (jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) for x in (samples, sizes))

        def encode(state, samples, sizes):
            return join(self._model(state).encode_audio(samples, sizes, length_rule=self.length_rule), "chunks", axis=0)

        chunks = ("chunks", None), ("chunks",)
        encoded = self._over_mesh(encode, chunks, WHOLE)(state, samples, sizes)[: len(places)]
        at = (places[:, None] * ROWS + jnp.arange(encoded.shape[1])).reshape(-1)
        return features.at[at].set(encoded.reshape(-1, encoded.shape[-1]).astype(features.dtype), mode="drop")

    def prefill_fn(self, state, pages, scale, features, tokens, heard, starts, counts, page_table):
        scale_axes = () if scale is None else (SCALE_AXES,)

        def prefill(state, pages, *arrays):
            scale, (features, tokens, heard, starts, counts, page_table) = (
                (None, arrays) if not scale_axes else (arrays[0], arrays[1:])
            )
            model = self._model(state)
            embeds = model.embed(tokens, features[None], heard)
            _, cache = model.decoder.extend(embeds, starts, counts, PagedCache(pages[0], scale), page_table)
            return cache.pages[None]

        axes = (POOL_AXES, *scale_axes, WHOLE, TABLE, TABLE, ROW, ROW, TABLE)
        given = (pages, *([] if scale is None else [scale]), features, tokens, heard, starts, counts, page_table)
        return self._over_mesh(prefill, axes, POOL_AXES)(state, *given)

    def decode_fn(self, state, pages, scale, seen, rows, wanted):
        scale_axes = () if scale is None else (SCALE_AXES,)

        def decode(state, pages, seen, rows, wanted, *scale):
            cache = PagedCache(pages[0], scale[0] if scale else None)
            burst, pages, seen = self._decode_shard(state, cache, seen[0], rows, wanted)
            return burst, pages[None], seen[None]

        in_axes = (POOL_AXES, SEEN_AXES, ROWS_AXES, WHOLE, *scale_axes)
        out_axes = (Burst(WHOLE, WHOLE, WHOLE, WHOLE, WHOLE), POOL_AXES, SEEN_AXES)  # every process reads all tokens
        given = () if scale is None else (scale,)
        return self._over_mesh(decode, in_axes, out_axes)(state, pages, seen, rows, wanted, *given)

    def _decode_shard(self, state, cache, seen, rows, wanted):
        model = self._model(state)
        lines = jnp.arange(rows.tokens.shape[0])
        wants_top = max_over(jnp.any(rows.sampling.top_log_probs > 0).astype(jnp.int32), "batch") > 0

        def anyone(live):
            return max_over(live.any().astype(jnp.int32), "batch") > 0  # every shard runs as many steps

        def unfinished(carry):
            i, more, *_ = carry
            return (i < wanted) & more

        def step(carry):
            i, _, cache, tokens, live, seen, out = carry
            at = rows.positions + i
            live &= i < rows.steps
            hidden, cache = model.decoder.extend(
                model.decoder.embed(tokens[:, None]), at, live.astype(jnp.int32), cache, rows.page_table
            )
            logits = model.decoder.logits(hidden[:, 0])
            chosen, found = sample(logits, rows.sampling, lambda: seen[rows.places], at + 1, self.vocab_size)
            forced = rows.forced[:, i]
            chosen = jnp.where(forced >= 0, forced, chosen)
            top = jax.lax.cond(wants_top, likeliest, lambda x: jax.tree.map(jnp.zeros_like, likeliest(x)), found)
            seen = seen.at[jnp.where(live, rows.places, len(seen)), chosen].set(True, mode="drop")
            live &= ~(chosen[:, None] == rows.stop_ids).any(-1)
            new = (chosen, found.scores[lines, chosen] - found.norm, *top)
            out = tuple(array.at[:, i].set(value) for array, value in zip(out, new, strict=True))
            return i + 1, anyone(live & (i + 1 < rows.steps)), cache, chosen, live, seen, out

        count = rows.tokens.shape[0]
        empty = jnp.zeros((count, self.steps))
        top = jnp.zeros((count, self.steps, MAX_TOP_LOG_PROBS))
        live = rows.steps > 0
        out = (empty.astype(jnp.int32), empty, top.astype(jnp.int32), top)
        carry = (jnp.int32(0), anyone(live), cache, jnp.asarray(rows.tokens), live, seen, out)
        steps, _, cache, _, _, seen, out = jax.lax.while_loop(unfinished, step, carry)
        tokens, log_probs, top_ids, top_log_probs = (join(x, "batch", axis=0) for x in out)
        return Burst(tokens, log_probs, steps, top_ids, top_log_probs), cache.pages, seen

    def mark_fn(self, seen, lane, place, tokens, first):
        row = jnp.where(first, False, seen[lane, place]).at[tokens].set(True, mode="drop")
        return seen.at[lane, place].set(row)


@functools.lru_cache(maxsize=8)
def _functions_of(graphdef, axes, *rest) -> Functions:
    """By what they are compiled for: equal arguments give the same functions."""
    return Functions(graphdef, unflatten_dict(dict(axes)), *rest)


class Programs:
    """Compiled functions over one model's weights."""

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
          vocab_size: entries of the tokenizer; the rows above are never chosen.
          steps: K, the most decode steps between two looks of the host.
          rules: the mesh; the model's parameters lie where they say.
        """
        graphdef, variables = nnx.split(model)
        self.state = nnx.to_pure_dict(variables)
        self.config = model.config
        self.rules = rules if rules is not None and rules.axes else None
        self.axes = logical_axes(variables)
        self.functions = _functions_of(
            graphdef, tuple(flatten_dict(self.axes).items()), self.rules, vocab_size, steps, length_rule
        )
        self.steps, self.length_rule = steps, length_rule
        self.shardings = self.rules.shardings(self.functions.specs) if self.rules else None
        self.dtype = self.state["decoder"]["embed_tokens"].dtype
        self.lanes = self.functions.shards("batch")

    def place(self) -> None:
        """Puts the weights where the rules want them, if they come in another layout: a trainer's."""
        if self.rules is not None:
            self.state = jax.device_put(self.state, self.shardings)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled for models of this structure, in this process."""
        return self.functions.compilations

    def memory_axes(self, quantised: bool) -> Memory:
        return Memory(POOL_AXES, SCALE_AXES if quantised else None, (None, None), SEEN_AXES)

    def memory_shapes(
        self, pages: int, page_size: int, entries: int, places: int, *, quantised: bool = False
    ) -> Memory:
        """The arrays of `Memory` as shapes, the pages and places being those of each lane."""
        decoder = self.config.decoder
        layers, combined, dim = decoder.num_hidden_layers, 2 * decoder.num_key_value_heads, decoder.head_dim
        shape = jax.ShapeDtypeStruct
        return Memory(
            shape((self.lanes, layers * pages, page_size, combined, dim), jnp.int8 if quantised else self.dtype),
            shape((layers, combined, dim), jnp.float32) if quantised else None,
            shape((entries * ROWS, decoder.hidden_size), self.dtype),
            shape((self.lanes, places, decoder.vocab_size), jnp.bool_),
        )

    def new_memory(self, pages: int, page_size: int, entries: int, places: int, scale: Any = None) -> Memory:
        """Zeros everywhere; where there is a `scale`, keys and values are kept as int8."""
        shapes = self.memory_shapes(pages, page_size, entries, places, quantised=scale is not None)
        axes = self.memory_axes(scale is not None)
        shardings = self.rules.shardings(self.rules.specs(axes)) if self.rules else None
        memory = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=shardings)()
        return memory if scale is None else memory._replace(scale=jax.device_put(scale, memory.scale.sharding))

    def hear(
        self,
        memory: Memory,
        samples: Float[AnyArray, "X W"],
        sizes: Int[AnyArray, " X"],
        places: Int[AnyArray, " X"],
    ) -> Memory:
        """Encodes chunks of one bucket shape, each into its place of the feature cache (a place past its end: none)."""
        return memory._replace(features=self.functions.hear(self.state, memory.features, samples, sizes, places))

    def prefill(
        self,
        memory: Memory,
        tokens: Int[AnyArray, "R Q"],
        heard: Int[AnyArray, "R Q"],
        starts: Int[AnyArray, " R"],
        counts: Int[AnyArray, " R"],
        page_table: Int[AnyArray, "R M"],
    ) -> Memory:
        """Puts the keys and values of a piece of each row's prompt into its pages.

        Args:
          heard: the row of the feature cache in a token's place, −1 for a token of text.
          starts, counts: the piece's first position, and how many of the Q tokens there are.
        """
        pages = self.functions.prefill(
            self.state, memory.pages, memory.scale, memory.features, tokens, heard, starts, counts, page_table
        )
        return memory._replace(pages=pages)

    def decode(self, memory: Memory, rows: Rows, wanted: int) -> tuple[Memory, Burst]:
        """Up to K steps, fewer when every row has met one of its stop ids or `wanted` have run."""
        burst, pages, seen = self.functions.decode(
            self.state, memory.pages, memory.scale, memory.seen, rows, np.int32(wanted)
        )
        return memory._replace(pages=pages, seen=seen), burst

    def mark(self, memory: Memory, lane: int, place: int, tokens: Int[np.ndarray, " T"]) -> Memory:
        """The row in this place has seen these tokens, and none else."""
        seen = memory.seen
        for start in range(0, max(len(tokens), 1), MARKED_AT_ONCE):
            piece = np.full(MARKED_AT_ONCE, self.config.decoder.vocab_size, np.int32)
            part = tokens[start : start + MARKED_AT_ONCE]
            piece[: len(part)] = part
            seen = self.functions.mark(seen, np.int32(lane), np.int32(place), piece, np.bool_(start == 0))
        return memory._replace(seen=seen)

    def alike(self, state: Any) -> Any:
        """Other weights of the same model, in the types of the present ones.

        Raises:
          ValueError: a tree of another structure or of other shapes.
        """
        old, new = (jax.tree_util.tree_flatten_with_path(tree) for tree in (self.state, state))
        shapes = [{jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves} for leaves, _ in (old, new)]
        if wrong := sorted(set(shapes[0].items()) ^ set(shapes[1].items())):
            raise ValueError(f"weights: expected those of the same model, found a difference at {wrong[0][0]}")
        return jax.tree.map(lambda a, b: b.astype(a.dtype), self.state, state)

    def update(self, state: Any) -> None:
        """Takes weights that are `alike`, and puts them where the old ones lay."""
        self.state = jax.tree.map(lambda a, b: jax.device_put(b, a.sharding), self.state, state)


def likeliest(found: Distribution) -> tuple[Int[Array, "R 20"], Float[Array, "R 20"]]:
    values, ids = jax.lax.top_k(found.log_probs(), MAX_TOP_LOG_PROBS)
    return ids.astype(jnp.int32), values
