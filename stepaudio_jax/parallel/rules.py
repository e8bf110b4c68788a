"""Which mesh axes each logical axis goes to: one table per strategy.

A parameter or an activation names its axes by what they are ("embed", "heads", "batch"); only this table knows of
meshes. Each name has up to two entries:

  split   the computation itself is split: every shard works on its own part and never sees the others'
  stored  a parameter is kept in parts and put together for each layer's use, forward and backward; its gradient is
          summed and kept in parts
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.parallel.mesh import in_phases

Axes = tuple[str | None, ...]


def _is_axes(leaf: Any) -> bool:
    """Whether a node of a tree is one array's axes; a named tuple or a tuple of tuples holds those of several."""
    return type(leaf) is tuple and all(name is None or isinstance(name, str) for name in leaf)


class ShardingError(ValueError):
    """Sizes that do not divide over the mesh; the message names both and what would."""


@dataclasses.dataclass(frozen=True)
class Rule:
    split: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()


_ROWS = ("data", "fsdp", "fsdp_minor")
_ACTIVATIONS = {
    "batch": Rule(split=_ROWS),
    "length": Rule(split=("context",)),
    "chunks": Rule(split=(*_ROWS, "context", "tensor")),  # of audio: each stands alone
    "heads": Rule(split=("tensor",)),
    "kv_heads": Rule(split=("tensor",)),
    "mlp": Rule(split=("tensor",)),
    "vocab": Rule(split=("tensor",)),
    "lora_rank": Rule(),
}
_ENCODER = {
    "audio_embed": Rule(stored=("fsdp", "fsdp_minor", "context", "tensor")),
    "audio_heads": Rule(),
    "audio_mlp": Rule(),
    "mels": Rule(),
    "layers": Rule(),
}

STRATEGIES: dict[str, dict[str, Rule]] = {
    "train": _ACTIVATIONS | _ENCODER | {"embed": Rule(stored=("fsdp", "fsdp_minor", "context"))},
    "serve": _ACTIVATIONS | _ENCODER | {"embed": Rule()},
}
"""train: parameters in parts over fsdp and context (the trainer's layout, which can also generate).
serve: the decoder whole along every axis but tensor, so that a decode step moves activations only.

fsdp_minor is a part of fsdp on large slices (mesh.in_phases), and absent elsewhere.
"""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """A strategy's table bound to a mesh (which is kept with fsdp in phases, see `mesh.in_phases`).

    Raises:
      ShardingError: an unknown strategy.
    """

    mesh: Mesh
    strategy: str = "train"

    def __post_init__(self):
        object.__setattr__(self, "mesh", in_phases(self.mesh))
        if self.strategy not in STRATEGIES:
            raise ShardingError(f'strategy: expected one of {", ".join(STRATEGIES)}, found "{self.strategy}"')

    def _rule(self, name: str) -> Rule:
        table = STRATEGIES[self.strategy]
        if name not in table:
            near = difflib.get_close_matches(name, table, 1)
            raise ShardingError(
                f'logical axis "{name}": not in the table of {self.strategy}'
                + (f"; did you mean {near[0]}?" if near else f", which has {', '.join(table)}")
            )
        return table[name]

    def _wide(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(axis for axis in axes if self.mesh.shape.get(axis, 1) > 1)

    def split(self, name: str) -> tuple[str, ...]:
        """Mesh axes, of more than one device, over which the computation along a logical axis is split."""
        return self._wide(self._rule(name).split)

    def stored(self, name: str) -> tuple[str, ...]:
        """Mesh axes over which parameters are kept in parts along a logical axis, the largest first: gradients are
        summed in this order, and what comes after it is a part of the size."""
        return tuple(sorted(self._wide(self._rule(name).stored), key=lambda axis: -self.mesh.shape[axis]))

    def size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of more than one device."""
        return self._wide(self.mesh.axis_names)

    def stored_axes(self, axes: Axes) -> list[tuple[str, ...]]:
        """Of each dimension of a parameter, the mesh axes over which it is stored in parts.

        Vectors are not: gathering one would cost a message for a few kilobytes.
        """
        vector = sum(name != "layers" for name in axes) < 2
        return [() if vector or name is None else self.stored(name) for name in axes]

    def spec(self, axes: Axes) -> PartitionSpec:
        """Where an array with these logical axes lies."""
        split = [() if name is None else self.split(name) for name in axes]
        parts = [own + kept for own, kept in zip(split, self.stored_axes(axes), strict=True)]
        return PartitionSpec(*(part[0] if len(part) == 1 else part or None for part in parts))

    def sharding(self, axes: Axes) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes))

    def specs(self, logical_axes: Any) -> Any:
        """The specs of a tree whose leaves are tuples of logical axis names; an empty one is an array that is whole
        everywhere."""
        return jax.tree.map(self.spec, logical_axes, is_leaf=_is_axes)

    def shardings(self, specs: Any) -> Any:
        """The shardings of a tree of specs."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
        )

    def check(self, config: StepAudioConfig, sizes: Mapping[str, tuple[str, int]]) -> None:
        """Refuses a model or a batch that does not divide over the mesh, before anything is compiled.

        Args:
          sizes: logical axis → (what the user calls its size, the size), such as {"batch": ("data.rows", 64)}.

        Raises:
          ShardingError: naming the size, the mesh axes and the nearest size or mesh that fits.
        """
        decoder = config.decoder
        counts = [
            ("heads", "num_attention_heads", decoder.num_attention_heads),
            ("kv_heads", "num_key_value_heads", decoder.num_key_value_heads),
            ("mlp", "intermediate_size", decoder.intermediate_size),
            ("vocab", "vocab_size", decoder.vocab_size),
            ("embed", "hidden_size", decoder.hidden_size),
        ]
        if config.audio_encoder_config is not None:
            counts.append(("audio_embed", "n_audio_state", config.audio.n_audio_state))
        for name, label, count in counts:
            axes = self.split(name) + self.stored(name)
            if count % (parts := self.size(axes)):
                fits = max(d for d in range(1, parts + 1) if count % d == 0)
                raise ShardingError(
                    f"{label} {count} does not divide over {self._written(axes)}; the most that fits is {fits}"
                )
        for name, (label, size) in sizes.items():
            axes = self.split(name)
            if size % (parts := self.size(axes)):
                nearest = max(round(size / parts), 1) * parts
                raise ShardingError(
                    f"{label} {size} does not divide over {self._written(axes)} = {parts} shards; "
                    f"the nearest that does is {nearest}"
                )

    def _written(self, axes: tuple[str, ...]) -> str:
        sizes: dict[str, int] = {}
        for axis in axes:  # fsdp as the user knows it, in one piece
            whole = axis.removesuffix("_minor")
            sizes[whole] = sizes.get(whole, 1) * self.mesh.shape[axis]
        return " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"


_inside: ContextVar[ShardingRules | None] = ContextVar("sharding_rules", default=None)


def current() -> ShardingRules | None:
    """The rules of the `jax.shard_map` that is being traced; None where every array is whole."""
    return _inside.get()


@contextlib.contextmanager
def inside(rules: ShardingRules | None) -> Iterator[None]:
    """Marks the body of a `jax.shard_map`: what `collectives` does in it goes by these rules."""
    token = _inside.set(rules if rules is not None and rules.axes else None)
    try:
        yield
    finally:
        _inside.reset(token)
