"""Records on their way: a bounded queue, and the thread that writes it out in batches and tries again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from itertools import islice
from time import monotonic
from typing import Protocol

from server.record.audit.record import AuditRecord
from server.record.audit.sink import Sink
from server.settings.groups import AuditSettings

logger = logging.getLogger(__name__)

BATCH = 500
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
ENDING_SECONDS = 2.0  # for requests whose answers have ended to be recorded
OPENING = "it is not open yet"


class Counts(Protocol):
    """What is needed of the metrics."""

    def audited(self, outcome: str, count: int) -> None:
        """Count so many records that were written, or dropped."""


class AuditLog:
    """Takes records from the event loop and never makes it wait. Records leave the queue once they are written."""

    def __init__(self, sink: Sink, settings: AuditSettings, counts: Counts) -> None:
        self.failure: str | None = OPENING  # why nothing can be written now
        self.open_calls = 0  # requests that will still want to be recorded
        self._sink = sink
        self._settings = settings
        self._counts = counts
        self._pending: deque[AuditRecord] = deque()
        self._changed = threading.Condition()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._deadline: float | None = None  # set: the server ends, and so does trying, then
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def pending(self) -> int:
        """Records that wait to be written."""
        return len(self._pending)

    @property
    def content(self) -> bool:
        """Whether messages and answers are kept."""
        return self._settings.content

    @property
    def refuses(self) -> str | None:
        """Why no request may be served now; None if they may, as always with `on_failure: serve`.

        Every request that is let in has a place in the queue.
        """
        if self._settings.on_failure == "serve":
            return None
        if self.failure is not None:
            return f"the audit log cannot be written: {self.failure}"
        if self.pending + self.open_calls > self._settings.queue:
            return "the audit log is behind"
        return None

    def begin(self) -> None:
        """A request will want to be recorded."""
        self.open_calls += 1
        self._quiet.clear()

    def end(self, record: AuditRecord, *, spare: bool = False) -> None:
        """The record of a request that has begun."""
        self.open_calls -= 1
        if not self.open_calls:
            self._quiet.set()
        self._write(record, spare=spare)

    def _write(self, record: AuditRecord, *, spare: bool) -> None:
        """Queue a record; where there is no room it is dropped, and counted. A `spare` one leaves the others room."""
        with self._changed:
            full = self.pending >= self._settings.queue - (self.open_calls if spare else 0)
            if not full:
                self._pending.append(record)
                self._changed.notify()
        if full:
            self._counts.audited("dropped", 1)

    async def stop(self) -> None:
        """Wait for the requests that are ending, then write what is queued."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_SECONDS):
                await self._quiet.wait()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Write what is queued, trying for `flush_seconds`; blocks. What is lost then is logged and counted."""
        with self._changed:
            self._deadline = monotonic() + self._settings.flush_seconds
            self._changed.notify()
        self._thread.join(self._settings.flush_seconds + LAST_RETRY_SECONDS)
        if lost := self.pending:
            logger.error("%d audit records are lost: %s", lost, self.failure or "they took too long to write")
            self._counts.audited("dropped", lost)

    # the thread's side -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry = FIRST_RETRY_SECONDS
        opened = False
        while not opened or (batch := self._next()):
            try:
                if opened:
                    self._sink.write(batch)
                    self._written(len(batch))
                else:
                    self._sink.open()
                    opened = True
            except Exception as error:  # noqa: BLE001  whatever a disk or a driver raises
                self._set_failure(str(error) or type(error).__name__)
                if not self._wait(retry):
                    break
                retry = min(2 * retry, LAST_RETRY_SECONDS)
            else:
                self._set_failure(None)
                retry = FIRST_RETRY_SECONDS
        self._sink.close()

    def _next(self) -> list[AuditRecord]:
        """The next records, once there are any; none when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._deadline is not None)
            return list(islice(self._pending, BATCH))

    def _written(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._pending.popleft()
        self._counts.audited("written", count)

    def _wait(self, seconds: float) -> bool:
        """Wait before the next try; False if there is to be none."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
                return True
            left = self._deadline - monotonic()
            self._changed.wait(min(seconds, max(left, 0.0)))
            return left > 0 and bool(self._pending)

    def _set_failure(self, failure: str | None) -> None:
        if failure is not None and self.failure != failure:
            logger.error("the audit log cannot be written: %s", failure)
        elif failure is None and self.failure not in (None, OPENING):
            logger.warning("the audit log is written again")
        self.failure = failure
