"""How much of the server one client holds at once, so that no key takes it from the others. Only for one thread."""

from __future__ import annotations

from collections import Counter

from server.access.keys import Client
from server.errors import ConcurrencyLimited


class Seats:
    """Counts the generations of each client that are prepared, computed or sent.

    `shared`: how many a client may have whose policy does not say.
    """

    def __init__(self, shared: int) -> None:
        self.shared = shared
        self._taken: Counter[str] = Counter()

    def limit(self, client: Client) -> int:
        """How many a client may have."""
        given = client.terms.concurrent_requests
        return self.shared if given is None else given

    def check(self, client: Client, more: int) -> None:
        """Raise ConcurrencyLimited if a client may not have so many more."""
        limit, taken = self.limit(client), self._taken[client.name]
        if taken + more > limit:
            raise ConcurrencyLimited(
                f"This key has {taken} generations at once, and {more} more would pass its limit of {limit} "
                "(concurrent_requests).",
                retry_after=1 if more <= limit else None,
            )

    def take(self, client: Client) -> Seat:
        """A seat of one generation. Raises ConcurrencyLimited."""
        seat = Seat(self, client)
        seat.widen(1)
        return seat

    def count(self, client: Client, more: int) -> None:
        """Count more generations of a client, or fewer."""
        self._taken[client.name] += more
        if not self._taken[client.name]:
            del self._taken[client.name]


class Seat:
    """What one request holds of its client's generations, until its last byte is sent."""

    def __init__(self, seats: Seats, client: Client) -> None:
        self._seats = seats
        self._client = client
        self._held = 0

    def widen(self, generations: int) -> None:
        """Hold as many generations. Raises ConcurrencyLimited, and holds no more."""
        self._seats.check(self._client, generations - self._held)
        self._hold(generations)

    def release(self) -> None:
        """Hold no generation; the same again changes nothing."""
        self._hold(0)

    def _hold(self, generations: int) -> None:
        self._seats.count(self._client, generations - self._held)
        self._held = generations
