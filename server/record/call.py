"""One HTTP request from its arrival to its last byte: what is known of it when it ends."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from fastapi import Request as HttpRequest

from server.record.audit.record import content_hash, content_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from server.access.concurrency import Seat
    from server.access.keys import Client
    from server.access.limits import Reservation
    from server.answer.choices import Choices
    from server.errors import ApiError
    from server.request import Schema
    from steering.policy import Policy


@dataclass(eq=False)
class Call:
    """Filled on the request's way; only for the event loop's thread.

    `given`: the `X-Request-Id` that the client sent, which others may have sent too; `record_id` is its own.
    """

    given: str = ""
    record_id: str = field(default_factory=lambda: secrets.token_hex(16))
    arrived: float = field(default_factory=monotonic)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    route: str | None = None  # set where it is authenticated, and so recorded
    client: Client | None = None
    policy: Policy | None = None
    body: object = None  # decoded, until it is described
    content: bytes | None = None
    content_hash: str | None = None
    reservation: Reservation | None = None
    seat: Seat | None = None  # of what its client may have at once, until the last byte
    choices: Choices | None = None
    schema: Schema | None = None  # held until it ends
    error: ApiError | None = None
    gone: bool = False  # the client left before its answer began
    status: int | None = None
    read: float | None = None  # when its body was there
    accepted: float | None = None  # when the engine took it
    span: Span | None = None
    trace_id: str | None = None
    clock_offset: int = 0  # nanoseconds from the monotonic clock to the time of day

    @property
    def id(self) -> str:
        """The request's `X-Request-Id`."""
        return self.given or f"req-{self.record_id}"

    def describe(self, fetched: Mapping[str, bytes], *, keep_bytes: int) -> None:
        """Hash what was asked, and keep it if it has at most `keep_bytes`. Slow: for a worker thread.

        `fetched`: the images that came from the network, by URL.
        """
        content, self.body = content_of(self.body, fetched), None
        self.content_hash = content_hash(content)
        if len(content) <= keep_bytes:
            self.content = content


def call_of(http: HttpRequest) -> Call:
    """The call that a request is."""
    call: Call = http.state.call
    return call
