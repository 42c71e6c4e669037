"""Audit records and sinks that tests can look into."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from server.record.audit.record import AuditRecord, Outcome
from server.settings.groups import AuditSettings


def record(number: int = 0, **fields: Any) -> AuditRecord:
    given = {"time": datetime(2026, 1, 2, 3, 4, number // 1_000_000, number % 1_000_000, tzinfo=UTC), **fields}
    return AuditRecord(**{"request_id": f"req-{number}", "route": "POST /v1/x", "outcome": Outcome.COMPLETED, **given})


def audit_settings(**options: Any) -> AuditSettings:
    return AuditSettings.model_validate({"url": "file:///tmp/unused.jsonl", **options})


class Counted:
    """Stands in for the metrics."""

    def __init__(self) -> None:
        self.counts = {"written": 0, "dropped": 0}

    def audited(self, outcome: str, count: int) -> None:
        self.counts[outcome] += count


class MemorySink:
    """Keeps records in a list. It fails while `fault` is set, and waits while `gate` is cleared."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.tries = 0
        self.closed = False
        self.batches: list[int] = []

    def open(self) -> None:
        self._pass()

    def write(self, records: Sequence[AuditRecord]) -> None:
        self._pass()
        self.batches.append(len(records))
        self.records += records

    def close(self) -> None:
        self.closed = True

    def _pass(self) -> None:
        self.tries += 1
        self.entered.set()
        self.gate.wait()
        if self.fault is not None:
            raise self.fault
