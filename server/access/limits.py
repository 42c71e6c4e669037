"""Rate limits per client: token buckets that fill evenly, over requests and over tokens. Only for one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from time import monotonic

from server.access.keys import Client
from server.errors import RateLimited

MINUTE = 60.0
Clock = Callable[[], float]


@dataclass
class Bucket:
    """How much of a per-minute limit is in use. The limit is given with each call: it may change at any time."""

    clock: Clock
    used: float = 0.0
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def level(self, limit: int) -> float:
        """What is in use now; it drains at `limit` per minute."""
        now = self.clock()
        self.used = max(0.0, self.used - (now - self.since) * limit / MINUTE)
        self.since = now
        return self.used

    def wait(self, limit: int, amount: int) -> float:
        """Seconds until `amount` fits; 0 if it does now, infinite if it is more than the whole limit."""
        if amount > limit:
            return math.inf
        return max(0.0, (self.level(limit) + amount - limit) * MINUTE / limit)

    def add(self, limit: int, amount: int) -> None:
        """Take `amount`; give back where it is negative."""
        self.used = max(0.0, self.level(limit) + amount)


@dataclass
class _Buckets:
    requests: Bucket
    tokens: Bucket


class Reservation:
    """Tokens held for one request until it is known how many it took."""

    def __init__(self, bucket: Bucket, limit: int, amount: int) -> None:
        self._bucket = bucket
        self._limit = limit
        self._held = amount

    def settle(self, used: int) -> None:
        """Correct what was held to what was used; the same again changes nothing."""
        self._bucket.add(self._limit, used - self._held)
        self._held = used


class RateLimiter:
    """The buckets of all clients, by their name, so that they outlive a change of the settings."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, _Buckets] = {}

    def admit(self, client: Client) -> None:
        """Count one request. Raises RateLimited, and counts nothing, where one of the limits is used up."""
        buckets = self._buckets(client.name)
        requests, tokens = client.terms.requests_per_minute, client.terms.tokens_per_minute
        if requests is not None:
            _check(buckets.requests, requests, 1, "requests")
        if tokens is not None:
            _check(buckets.tokens, tokens, 1, "tokens")
        if requests is not None:
            buckets.requests.add(requests, 1)

    def widen(self, client: Client, requests: int) -> None:
        """Count a request that `admit` has counted as so many. Raises RateLimited, and counts no more.

        The one stays counted; the wait that is told is for all of them, since a client sends all of them again.
        """
        if (limit := client.terms.requests_per_minute) is None:
            return
        bucket = self._buckets(client.name).requests
        if requests > limit or bucket.wait(limit, requests - 1) > 0:
            raise _limited(bucket, limit, requests, "requests")
        bucket.add(limit, requests - 1)

    def reserve(self, client: Client, tokens: int) -> Reservation | None:
        """Hold the most tokens that a request can take; None where nothing limits them. Raises RateLimited."""
        if (limit := client.terms.tokens_per_minute) is None:
            return None
        bucket = self._buckets(client.name).tokens
        _check(bucket, limit, tokens, "tokens")
        bucket.add(limit, tokens)
        return Reservation(bucket, limit, tokens)

    def headers(self, client: Client) -> dict[str, str]:
        """OpenAI's `x-ratelimit-...` for the limits that this client has."""
        headers: dict[str, str] = {}
        buckets = self._buckets(client.name)
        for kind, bucket, limit in (
            ("requests", buckets.requests, client.terms.requests_per_minute),
            ("tokens", buckets.tokens, client.terms.tokens_per_minute),
        ):
            if limit is not None:
                used = bucket.level(limit)
                headers[f"x-ratelimit-limit-{kind}"] = str(limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(limit - used + 1e-9)))
                headers[f"x-ratelimit-reset-{kind}"] = duration(used * MINUTE / limit)
        return headers

    def forget_all_but(self, names: Container[str]) -> None:
        """Drop the buckets of clients that are no longer there."""
        self._clients = {name: buckets for name, buckets in self._clients.items() if name in names}

    def _buckets(self, name: str) -> _Buckets:
        if name not in self._clients:
            self._clients[name] = _Buckets(Bucket(self._clock), Bucket(self._clock))
        return self._clients[name]


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `1m30s`, `2s`, `250ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _check(bucket: Bucket, limit: int, amount: int, kind: str) -> None:
    if bucket.wait(limit, amount) > 0:
        raise _limited(bucket, limit, amount, kind)


def _limited(bucket: Bucket, limit: int, amount: int, kind: str) -> RateLimited:
    """The error of an amount that does not fit now, or never will."""
    wait = bucket.wait(limit, amount)
    if math.isinf(wait):
        return RateLimited(
            f"The request could take {amount} {kind}, which is more than the limit of {limit} per minute.",
            retry_after=None,
        )
    return RateLimited(
        f"The limit of {limit} {kind} per minute is reached; try again in {duration(wait)}.",
        retry_after=math.ceil(wait),
    )
