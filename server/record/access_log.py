"""The access log: one line for a request that has ended."""

from __future__ import annotations

import logging
import time

from server.record.call import Call
from server.watch.logs import ACCESS

PROBES = frozenset({"/health", "/ready", "/metrics"})


def log_access(call: Call, method: str, route: str | None) -> None:
    """One line for a request that has ended, but not for probes and scrapes that went well.

    `route` is the template, never the path that was sent.
    """
    well = call.error is None and call.status is not None and call.status < 400
    if not ACCESS.isEnabledFor(logging.INFO) or (well and route in PROBES):
        return
    seconds = round(time.monotonic() - call.arrived, 6)
    fields = {
        "method": method,
        "route": route,
        "status": call.status,
        "seconds": seconds,
        "client": None if call.client is None else call.client.name,
        "reason": None if call.error is None else call.error.code or call.error.reason,
        "trace_id": call.trace_id,
    }
    ACCESS.info("%s %s %s %.3fs", method, route or "-", call.status or "-", seconds, extra={"fields": fields})
