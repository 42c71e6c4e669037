"""Records on their way to a sink that is slow, fails, or comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.record.audit import log as audit_log
from server.record.audit.log import AuditLog
from tests.server.records import Counted, MemorySink, audit_settings, record
from tests.waiting import WAIT_SECONDS, until

pytestmark = pytest.mark.chance


@asynccontextmanager
async def started(sink: MemorySink, counts: Counted | None = None, **options: Any) -> AsyncIterator[AuditLog]:
    log = AuditLog(sink, audit_settings(**options), counts or Counted())
    log.start()
    try:
        yield log
    finally:
        await log.stop()


def put(log: AuditLog, *numbers: int, spare: bool = False) -> None:
    for number in numbers:
        log.begin()
        log.end(record(number), spare=spare)


def written(sink: MemorySink) -> list[str]:
    return [each.request_id for each in sink.records]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(audit_log, "LAST_RETRY_SECONDS", 0.01)


async def test_all_that_is_queued_is_written_in_order_before_the_end() -> None:
    sink, counts = MemorySink(), Counted()
    async with started(sink, counts) as log:
        put(log, *range(2000))
    assert written(sink) == [f"req-{number}" for number in range(2000)]
    assert counts.counts == {"written": 2000, "dropped": 0}
    assert sink.closed


async def test_what_waits_is_written_in_batches() -> None:
    sink = MemorySink()
    async with started(sink) as log:
        await until(lambda: log.failure is None, "the opening")
        sink.entered.clear()
        sink.gate.clear()
        put(log, 0)
        await until(sink.entered.is_set, "a write")
        put(log, *range(1, 1200))
        assert log.pending == 1200
        sink.gate.set()
    assert sink.batches == [1, 500, 500, 199]


async def test_a_failure_is_seen_and_tried_again_until_it_works() -> None:
    sink, counts = MemorySink(), Counted()
    async with started(sink, counts, on_failure="serve") as log:
        await until(lambda: log.failure is None, "the opening")
        sink.fault = OSError(28, "No space left on device")
        put(log, 1)
        await until(lambda: log.failure is not None, "the failure")
        assert "No space left" in str(log.failure)
        assert log.refuses is None
        put(log, 2)
        await until(lambda: sink.tries > 5, "six tries")
        assert counts.counts == {"written": 0, "dropped": 0}
        sink.fault = None
        await until(lambda: log.failure is None and not log.pending, "the writing")
    assert written(sink) == ["req-1", "req-2"]


async def test_a_sink_that_cannot_be_opened_is_tried_again() -> None:
    sink = MemorySink()
    sink.fault = ConnectionError("the database is away")
    async with started(sink, on_failure="refuse") as log:
        await until(lambda: sink.tries > 3, "four tries")
        assert log.refuses == "the audit log cannot be written: the database is away"
        put(log, 1)
        sink.fault = None
        await until(lambda: log.refuses is None, "the recovery")
    assert written(sink) == ["req-1"]


async def test_to_serve_drops_what_the_queue_cannot_hold_and_counts_it() -> None:
    sink, counts = MemorySink(), Counted()
    sink.fault = OSError("away")
    async with started(sink, counts, queue=10) as log:
        put(log, *range(25))
        assert counts.counts["dropped"] == 15
        assert log.refuses is None
        sink.fault = None
    assert written(sink) == [f"req-{number}" for number in range(10)]


async def test_to_refuse_keeps_a_place_for_everyone_who_is_let_in() -> None:
    sink, counts = MemorySink(), Counted()
    sink.gate.clear()  # slow, not broken
    async with started(sink, counts, queue=10, on_failure="refuse") as log:
        log.failure = None
        let_in = 0
        while log.refuses is None:
            log.begin()
            let_in += 1
        assert log.refuses == "the audit log is behind"
        put(log, *range(100, 150), spare=True)  # those that are refused meanwhile
        for number in range(let_in):
            log.end(record(number))
        sink.gate.set()
    names = written(sink)
    assert [f"req-{number}" for number in range(let_in - 1)] == [name for name in names if len(name) < 7]
    assert counts.counts["written"] == len(names) <= 10


async def test_the_end_waits_for_requests_that_are_ending() -> None:
    sink = MemorySink()
    log = AuditLog(sink, audit_settings(), Counted())
    log.start()
    log.begin()
    ending = asyncio.create_task(log.stop())
    await asyncio.sleep(0)
    log.end(record(1))
    await ending
    assert written(sink) == ["req-1"]


async def test_the_end_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    sink, counts = MemorySink(), Counted()
    log = AuditLog(sink, audit_settings(flush_seconds=0.05), counts)
    log.start()
    await until(lambda: log.failure is None, "the opening")
    sink.fault = OSError("away")
    put(log, 1, 2, 3)
    await asyncio.wait_for(log.stop(), WAIT_SECONDS)
    assert counts.counts == {"written": 0, "dropped": 3}
    assert "3 audit records are lost: away" in caplog.text


async def test_a_sink_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, counts = MemorySink(), Counted()
    log = AuditLog(sink, audit_settings(flush_seconds=0.05), counts)
    log.start()
    await until(lambda: log.failure is None, "the opening")
    sink.gate.clear()
    put(log, 1)
    await log.stop()
    assert counts.counts["dropped"] == 1
    sink.gate.set()
