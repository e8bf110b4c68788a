"""Bin packing: which records share a row of fixed length. Best fit, longest first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def pack(lengths: Int[np.ndarray, " N"], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, every index once, no row's lengths adding up to more than `capacity`.

    Best fit decreasing (Johnson 1973; at most 11/9 of the fewest rows plus 4): each record, longest first, goes to the
    row it leaves the least room in. Equal lengths keep their order, so the result depends on the arguments alone.

    Raises:
      ValueError: a length below 1 or above the capacity.
    """
    outside = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(outside):
        first = outside[0]
        raise ValueError(f"lengths: expected 1 to {capacity} tokens, found {lengths[first]} at {first}")
    order = np.argsort(-lengths, kind="stable")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the tokens they still hold
    rooms = 0  # bit r is set where with_room[r] has a row: the tightest fit is the lowest bit from `length` on
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if fits := rooms >> length:
            room = length + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows
