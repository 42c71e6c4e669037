"""When a request must have ended: by the server's limit, or the client's own where that is sooner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from starlette.requests import Request as HttpRequest

from server.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """`seconds` after the arrival of a request, which is at `at` on the monotonic clock."""

    at: float
    seconds: float

    @classmethod
    def of(cls, http: HttpRequest, arrived: float, seconds: float) -> Deadline:
        """The server's limit, or less where the client says `Prefer: wait=SECONDS` (RFC 7240, section 4.3)."""
        sooner = min([seconds, *_waits(http)])
        return cls(arrived + sooner, sooner)

    @property
    def left(self) -> float:
        """Seconds until the deadline, below 0 after it."""
        return self.at - monotonic()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Give up what is done within once the time is over. Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self.left) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self.exceeded() from None

    def exceeded(self) -> DeadlineExceeded:
        """What the client is told after the deadline."""
        return DeadlineExceeded(f"The answer was not complete within {self.seconds:g} seconds.")


def _waits(http: HttpRequest) -> list[float]:
    """Every whole number of seconds that a `Prefer` header waits for. What is not understood is not followed."""
    preferences = ",".join(http.headers.getlist("prefer")).lower().split(",")
    pairs = [preference.partition(";")[0].partition("=") for preference in preferences]
    values = [value.strip().strip('"') for name, _, value in pairs if name.strip() == "wait"]
    return [float(value) for value in values if value.isascii() and value.isdecimal() and len(value) < 9]
