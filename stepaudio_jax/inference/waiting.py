"""Who is next: by priority, then owners in turns, then by arrival."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting)

    def append(self, one: T) -> None:
        self._waiting.append(one)

    def put_back(self, one: T) -> None:
        self._waiting.insert(0, one)

    def remove(self, one: T) -> None:
        self._waiting.remove(one)

    def in_order(self, running: Iterable[T]) -> list[T]:
        """Who should start, best first: the smallest priority number; among those the owner with the fewest running;
        among those who came first."""
        busy = Counter(row.request.owner for row in running)
        ranked = []
        for place, one in enumerate(self._waiting):
            owner = one.request.owner
            ranked.append((one.request.priority, busy[owner], place, one))
            busy[owner] += 1  # the owner's next one waits for the others' turn
        return [one for *_, one in sorted(ranked, key=lambda entry: entry[:3])]
