"""What shards tell each other, by logical axis name. Where every array is whole, each of these does nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from stepaudio_jax.parallel.rules import Axes, current


def gather_param(x: Array, axes: Axes) -> Array:
    """A parameter put together over the mesh axes it is stored over; its gradient comes back summed and in parts.

    One mesh axis after another, the innermost first; named "weight" for rematerialisation policies.
    """
    if (rules := current()) is None:
        return x
    for dim, mesh_axes in enumerate(rules.stored_axes(axes)):
        for mesh_axis in reversed(mesh_axes):
            x = checkpoint_name(jax.lax.all_gather(x, mesh_axis, axis=dim, tiled=True), "weight")
    return x


def _split(name: str | None) -> tuple[str, ...]:
    """The mesh axes over which the computation along a logical axis is split here."""
    rules = current()
    return rules.split(name) if rules is not None and name is not None else ()


def sum_over(x: Any, name: str | None) -> Any:
    """The sum of the shards' partial results, after a contraction along a split axis."""
    axes = _split(name)
    return jax.lax.psum(x, axes) if axes else x


def max_over(x: Array, name: str) -> Array:
    axes = _split(name)
    return jax.lax.pmax(x, axes) if axes else x


def join(x: Array, name: str, axis: int, *, keep: str | None = None) -> Array:
    """The whole of an array that is split along a logical axis, or, with `keep`, the share of it that goes with a
    shard's part of another one, over whose mesh axes both are split first."""
    axes = _split(name)
    if keep is not None:
        axes = tuple(mesh_axis for mesh_axis in axes if mesh_axis not in _split(keep))
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


def shard_of(name: str) -> tuple[Int[Array, ""] | int, int]:
    """Which part of a split axis this shard holds, and of how many."""
    axes = _split(name)
    if not axes:
        return 0, 1
    return jax.lax.axis_index(axes), jax.lax.axis_size(axes)


def split_over(name: str) -> str | None:
    """The mesh axis along which a logical axis is split, if any."""
    axes = _split(name)
    return axes[0] if axes else None


def varying(tree: Any) -> Any:
    """Marks arrays as differing from shard to shard along every mesh axis, so that the gradients of what is in truth
    the same everywhere are summed once, here, and not wherever it is used."""
    rules = current()
    if rules is None:
        return tree

    def vary(x):
        missing = tuple(axis for axis in rules.axes if axis not in jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(lambda x: vary(jnp.asarray(x)), tree)
