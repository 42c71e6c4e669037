"""How many bytes of bodies are in memory at once, of all and of each client. Only for the event loop's thread."""

from __future__ import annotations

from collections import Counter

from server.errors import BodiesFull
from server.settings.units import MEBI

# Of the machine's memory, or the container's: texts and images made of a body are up to thrice as much.
MEMORY_SHARE = 32
LEAST_BYTES = 64 * MEBI
MOST_BYTES = 1024 * MEBI


def default_budget(memory_bytes: int, largest_body: int) -> int:
    """Bytes of all bodies where no setting says: a share of the memory, and room for two of the largest."""
    return max(min(max(memory_bytes // MEMORY_SHARE, LEAST_BYTES), MOST_BYTES), 2 * largest_body)


class BodyBudget:
    """Counts the bytes of bodies that are received, or held until they are prepared: `limit` of all at most.

    One client has at most half of it, so that no key alone fills it. What counts is what has come, not what was
    announced: who announces much and sends nothing takes nothing from others.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._by_client: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def check(self, client: str, more: int) -> None:
        """Raise BodiesFull if so many bytes more have no room now."""
        if self._held + more > self.limit or self._by_client[client] + more > self.limit // 2:
            raise BodiesFull(
                f"There is no memory for {more} bytes of a body now: {self._held} of {self.limit} are in use, and this "
                f"key has {self._by_client[client]} of its half of them (body_memory_mib)."
            )

    def add(self, client: str, more: int) -> None:
        """Count more bytes, or fewer."""
        self._held += more
        self._by_client[client] += more
        if not self._by_client[client]:
            del self._by_client[client]


class HeldBody:
    """What one body takes of the budget."""

    def __init__(self, budget: BodyBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._bytes = 0

    def expect(self, announced: int) -> None:
        """Raise BodiesFull if a body of so many bytes has no room; nothing is held for it."""
        self._budget.check(self._client, announced)

    def grow(self, more: int) -> None:
        """Hold so many bytes more. Raises BodiesFull."""
        self._budget.check(self._client, more)
        self._budget.add(self._client, more)
        self._bytes += more

    def release(self) -> None:
        """Hold none; the same again changes nothing."""
        self._budget.add(self._client, -self._bytes)
        self._bytes = 0
