"""Checksums of arrays, made where they lie: the same for the same values on every mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, in order."""
    return {path_name(key): leaf for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def checksums(tree: Any) -> dict[str, int]:
    """Of each array by its path: the sum of its bits as 16 or 32-bit numbers, each times an odd number that its place
    gives, modulo 2³². No single change of bits and no exchange of two neighbours leaves it as it was. It is the same
    on every mesh, unlike any sum of floats."""
    arrays, found = named(tree), {}
    by_mesh: dict[Mesh, list[str]] = {}
    for name, array in arrays.items():
        by_mesh.setdefault(array.sharding.mesh, []).append(name)
    for mesh, names in by_mesh.items():
        sums = np.asarray(_sums(mesh)([arrays[name] for name in names]))
        found |= dict(zip(names, sums.tolist(), strict=True))
    return {name: found[name] for name in arrays}


@functools.cache
def _sums(mesh: Mesh) -> Callable[[list[jax.Array]], jax.Array]:
    def sums(arrays):
        return jnp.stack([_sum(x) for x in arrays])

    return jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place, stride = jnp.uint32(0), 1
    for axis in reversed(range(x.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def path_name(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator=".")
