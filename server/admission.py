"""Whether one more HTTP request is taken: the places that it holds until the engine counts it, and its policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from server.access.limits import RateLimiter
from server.access.policies import make_policy, wished_policy
from server.api.answer_fields import GuardOptions
from server.api.served import Served
from server.errors import ApiError, BadRequest, ClientGone, TooManyRequests
from server.record.call import Call
from server.settings.groups import PolicySettings
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
        taken = self._held + self._engine.live
        if places > 0 and taken + places > self.limit:
            raise TooManyRequests(
                f"{taken} of at most {self.limit} requests are running or waiting.",
                retry_after=self._engine.retry_after,
            )
        self._held += places


class Admission:
    """Places held for one HTTP request while it is read and prepared: one, until it is known to want more."""

    def __init__(self, places: Places, limiter: RateLimiter, call: Call) -> None:
        self.call = call
        self._places = places
        self._limiter = limiter
        self._held = 0
        self._hold(1)

    def _hold(self, places: int) -> None:
        self._places.hold(places - self._held)
        self._held = places

    def widen(self, places: int, param: str) -> None:
        """Hold and count as many places as the request has generations.

        Raises BadRequest if no queue could, RateLimited, TooManyRequests.
        """
        if places > self._places.limit:
            raise BadRequest(
                f"'{param}' asks for {places} generations at once; this server runs and queues at most "
                f"{self._places.limit}.",
                param=param,
            )
        assert self.call.client is not None, "a request is authenticated before it is admitted"
        self._limiter.widen(self.call.client, places)
        self._hold(places)

    def release(self) -> None:
        """Hold none any more: the engine counts what it has accepted."""
        self._hold(0)

    @property
    def terms(self) -> PolicySettings:
        """What the client's policy says."""
        assert self.call.client is not None, "a request is authenticated before it is admitted"
        return self.call.client.terms

    def policy(self, wish: GuardOptions | None, served: Served) -> Policy:
        """What this request is served under: its client's policy, as far as it may as it wishes. Raises ApiError."""
        assert self.call.client is not None, "a request is authenticated before it is admitted"
        policy = make_policy(self.call.client.policy, self.terms, served.guard)
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
