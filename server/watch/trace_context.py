"""The trace context of the request that a task works for, to be sent on with what it asks of others."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

# W3C headers (traceparent, tracestate); empty where no trace is recorded.
outgoing: ContextVar[Mapping[str, str]] = ContextVar("outgoing", default={})  # noqa: B039  never changed
