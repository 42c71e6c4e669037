"""Tells of every call what is to be told when it has ended: its audit record and its trace, where those are kept."""

from __future__ import annotations

from collections.abc import Mapping

from server.api.served import Judge
from server.errors import AuditUnavailable
from server.record.audit.log import AuditLog
from server.record.call import Call
from server.record.describe import record_of
from server.record.tracing import Tracing

CONTENT_BYTES_PER_CHARACTER = 8  # a control character is 6 in JSON


class Recorder:
    """Begins and ends the record of each call. For the event loop's thread, but for `describe`."""

    def __init__(self, audit: AuditLog | None, tracing: Tracing | None) -> None:
        self._audit = audit
        self._tracing = tracing

    @property
    def keeps_bodies(self) -> bool:
        """Whether `describe` needs the decoded body."""
        return self._audit is not None

    @property
    def keeps_answers(self) -> bool:
        """Whether the text of answers is recorded."""
        return self._audit is not None and self._audit.content

    @property
    def ready(self) -> bool:
        """Whether requests may be served, as far as their records go."""
        return self._audit is None or self._audit.refuses is None

    def check(self) -> None:
        """Raise AuditUnavailable where requests that cannot be recorded are not to be served."""
        if self._audit is not None and (why := self._audit.refuses) is not None:
            raise AuditUnavailable(f"The server is not ready: {why}.")

    def start(self) -> None:
        """Begin to write the audit log."""
        if self._audit is not None:
            self._audit.start()

    async def stop(self) -> None:
        """Write the last records, and export the last spans."""
        if self._audit is not None:
            await self._audit.stop()
        if self._tracing is not None:
            await self._tracing.stop()

    def begin(self, call: Call, headers: Mapping[str, str]) -> None:
        """A call whose route is known; `headers`: the request's own."""
        if self._tracing is not None:
            self._tracing.begin(call, headers)
        if self._audit is not None:
            self._audit.begin()

    def describe(self, call: Call, fetched: Mapping[str, bytes], *, max_characters: int) -> None:
        """Hash what was asked, and keep it where that is wished. Slow: for a worker thread.

        `fetched`: images that came from the network, by URL. `max_characters`: of a prompt; one within it fits,
        whatever JSON makes of it, and one beyond it is refused.
        """
        if self._audit is not None:
            keep = CONTENT_BYTES_PER_CHARACTER * max_characters if self._audit.content else 0
            call.describe(fetched, keep_bytes=keep)

    def end(self, call: Call, judge: Judge | None) -> None:
        """A call has had its last byte."""
        if self._audit is not None and call.route is not None:
            record = record_of(call, judge=judge, content=self._audit.content)
            self._audit.end(record, spare=call.choices is None)
        if self._tracing is not None:
            self._tracing.end(call)
