"""Work that waits takes turns by whose it is. Knows no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits, by its key: that of one key in the order in which it came, the keys in turns.

    The key whose last turn is longest ago is next, and before all one that never had any: whatever one key has waiting,
    another waits for the beginning of at most one piece of it.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[T]] = {}
        self._last: dict[
            Hashable, int
        ] = {}  # number of each key's last turn; there are as many as the server has clients
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def waiting(self, key: Hashable) -> int:
        """How much of a key waits."""
        return len(self._waiting.get(key, ()))

    def heads(self) -> list[T]:
        """What comes first of each key."""
        return [waiting[0] for waiting in self._waiting.values()]

    def put(self, key: Hashable, item: T) -> None:
        """Add what is last in its key's order."""
        self._waiting.setdefault(key, deque()).append(item)

    def take(self) -> T:
        """Take what is next. Raises ValueError if nothing waits."""
        key = min(self._waiting, key=lambda each: self._last.get(each, 0))
        item = self._waiting[key].popleft()
        if not self._waiting[key]:
            del self._waiting[key]
        self._number += 1
        self._last[key] = self._number
        return item
