"""Queries laid out in tiles: the heads that share a key head side by side, so that a tile is one plain product.

A tile of R = G · C rows holds C queries of each of the G query heads of one key/value head. They see the same keys, so
no key is ever repeated, a tile is wide although it spans few queries, and the sums over a group that the gradients of
keys and values need are part of a product.

Shapes: B batch, Q queries, H query heads, N key/value heads, G = H / N, I tiles of C queries of each head.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from stepaudio_jax.kernels.visibility import Visible, pad_queries


def fold(x: Shaped[Array, "B Q H *D"], kv_heads: int, block: int, tiles: int = 1) -> Shaped[Array, "B N I R *D"]:
    """Queries in tiles of `block`, padded with zeros to a multiple of so many tiles."""
    batch, length, heads, *rest = x.shape
    x = jnp.pad(x, [(0, 0), (0, -length % (tiles * block))] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(batch, -1, block, kv_heads, heads // kv_heads, *rest)
    x = x.transpose(0, 3, 1, 4, 2, *range(5, x.ndim))
    return x.reshape(*x.shape[:3], -1, *rest)


def unfold(x: Shaped[Array, "B N I R *D"], length: int, block: int) -> Shaped[Array, "B Q H *D"]:
    """Undoes `fold`; padding is cut off."""
    batch, kv_heads, tiles, _, *rest = x.shape
    x = x.reshape(batch, kv_heads, tiles, -1, block, *rest)
    x = x.transpose(0, 2, 4, 1, 3, *range(5, x.ndim))
    return x.reshape(batch, tiles * block, -1, *rest)[:, :length]


def fold_visible(visible: Visible, group: int, block: int) -> tuple[Int[Array, "B I R"], Int[Array, "B I R"]]:
    """The interval of keys of each row of a tile; padding sees what its neighbour sees."""
    start, stop = (pad_queries(x, block).reshape(x.shape[0], -1, 1, block) for x in visible)
    start, stop = (jnp.broadcast_to(x, (*x.shape[:2], group, block)).reshape(*x.shape[:2], -1) for x in (start, stop))
    return start, stop


def heads_first(x: Float[Array, "B K N D"], block: int) -> Float[Array, "B N K D"]:
    """Keys or values, heads before length, with zeros up to a whole number of blocks: one copy in all."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))
