"""Who is next: by priority, then owners in turns, then by arrival."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from stepaudio_jax.inference.types import Request


class Waits(Protocol):
    @property
    def request(self) -> Request: ...


T = TypeVar("T", bound=Waits)


class WaitingList(Generic[T]):
    """Requests not yet running, in order of arrival; one that was interrupted goes back to the front."""

    def __init__(self):
        self._waiting: list[T] = []
        self._turns: Counter[str] = Counter()  # taken by each owner who waits

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting)

    def append(self, one: T) -> None:
        owner = one.request.owner
        if owner not in self._turns:  # who comes new has no turns to make up for
            self._turns[owner] = min(self._turns.values(), default=0)
        self._waiting.append(one)

    def put_back(self, one: T) -> None:
        self._turns.setdefault(one.request.owner, 0)
        self._waiting.insert(0, one)

    def start(self, one: T) -> None:
        """It runs now, which was its owner's turn."""
        self._turns[one.request.owner] += 1
        self.remove(one)

    def remove(self, one: T) -> None:
        self._waiting.remove(one)
        if all(other.request.owner != one.request.owner for other in self._waiting):
            del self._turns[one.request.owner]

    def in_order(self) -> list[T]:
        """Who should start, best first: the smallest priority number; among those the owner who had the fewest turns;
        among those who came first."""
        turns, ranked = self._turns.copy(), []
        for place, one in enumerate(self._waiting):
            ranked.append((one.request.priority, turns[one.request.owner], place, one))
            turns[one.request.owner] += 1
        return [one for *_, one in sorted(ranked, key=lambda entry: entry[:3])]
