"""Whether one more HTTP request is taken: memory for its body, then its places until the engine counts it.

A place is taken when the body is there: who only begins to send one takes none from others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from models.memory import machine_memory
from server.access.concurrency import Seats
from server.access.limits import RateLimiter
from server.access.policies import make_policy, wished_policy
from server.api.answer_fields import GuardOptions
from server.api.served import Served
from server.errors import ApiError, BadRequest, ClientGone, TooManyRequests
from server.http.body_budget import BodyBudget, HeldBody, default_budget
from server.record.call import Call
from server.settings.groups import PolicySettings
from server.settings.schema import Settings
from server.settings.units import MEBI
from server.watch.metrics import Metrics
from steering.policy import Policy


class Live(Protocol):
    """What is needed of an engine's client."""

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""

    @property
    def retry_after(self) -> int:
        """Seconds after which a full queue may have room."""


class Places:
    """Counts requests that are read and prepared, beside those that live in the engine: `limit` of both at most."""

    def __init__(self, engine: Live, limit: int) -> None:
        self.limit = limit
        self._engine = engine
        self._held = 0

    def hold(self, places: int) -> None:
        """Hold more places, or less. Raises TooManyRequests, and holds no more, if there are not as many."""
        if places > 0:
            self.check(places)
        self._held += places

    def check(self, places: int) -> None:
        """Raise TooManyRequests if there are not as many."""
        taken = self._held + self._engine.live
        if taken + places > self.limit:
            raise TooManyRequests(
                f"{taken} of at most {self.limit} requests are running or waiting.",
                retry_after=self._engine.retry_after,
            )


@dataclass(frozen=True)
class Gate:
    """What all requests share, each client within its own limits."""

    places: Places
    limiter: RateLimiter
    seats: Seats
    bodies: BodyBudget

    @classmethod
    def of(cls, engine: Live, limiter: RateLimiter, settings: Settings) -> Gate:
        """The gate that settings describe."""
        budget = None if settings.body_memory_mib is None else settings.body_memory_mib * MEBI
        bodies = BodyBudget(budget or default_budget(machine_memory(), settings.max_body_bytes))
        return cls(Places(engine, settings.max_live), limiter, Seats(settings.shared_live), bodies)


class Admission:
    """What one HTTP request holds: its body until it is prepared, one place or as many as it wants, its client's seats.

    Raises RateLimited, ConcurrencyLimited and TooManyRequests where nothing of a body need be read to know.
    """

    def __init__(self, gate: Gate, call: Call) -> None:
        assert call.client is not None, "a request is authenticated before it is admitted"
        self.call = call
        self.body = HeldBody(gate.bodies, call.client.name)
        self._client = call.client
        self._gate = gate
        self._held = 0
        gate.limiter.admit(call.client)
        gate.places.check(1)
        gate.seats.check(call.client, 1)

    def enter(self) -> None:
        """Take one place: the body is there. Raises ConcurrencyLimited, TooManyRequests."""
        self._hold(1)
        self.call.seat = self._gate.seats.take(self._client)

    def _hold(self, places: int) -> None:
        self._gate.places.hold(places - self._held)
        self._held = places

    def widen(self, places: int, param: str) -> None:
        """Hold and count as many places as the request has generations.

        Raises BadRequest if no queue could, RateLimited, ConcurrencyLimited, TooManyRequests.
        """
        if places > self._gate.places.limit:
            raise BadRequest(
                f"'{param}' asks for {places} generations at once; this server runs and queues at most "
                f"{self._gate.places.limit}.",
                param=param,
            )
        assert self.call.seat is not None, "a request enters before it wants more"
        self._gate.limiter.widen(self._client, places)
        self._hold(places)
        self.call.seat.widen(places)

    def release(self) -> None:
        """Hold neither places nor memory any more: the engine counts what it has accepted, and the body is used."""
        self._hold(0)
        self.body.release()

    @property
    def tenant(self) -> int:
        """A number for the client."""
        return self._client.tenant

    @property
    def terms(self) -> PolicySettings:
        """What the client's policy says."""
        return self._client.terms

    def policy(self, wish: GuardOptions | None, served: Served) -> Policy:
        """What this request is served under: its client's policy, as far as it may as it wishes. Raises ApiError."""
        policy = make_policy(self._client.policy, self.terms, served.guard)
        if wish is not None:
            policy = wished_policy(policy, wish, served.guard, may_loosen=self.terms.may_loosen)
        self.call.policy = policy
        return policy


@contextmanager
def counted(metrics: Metrics) -> Iterator[None]:
    """Count a request that never reaches the engine, by why."""
    try:
        yield
    except ApiError as error:
        metrics.rejections.labels(error.reason).inc()
        raise
    except ClientGone:
        metrics.rejections.labels("client_gone").inc()
        raise
    except Exception:
        metrics.rejections.labels("internal_error").inc()
        raise
