"""What an audit sink is: somewhere records are written to and read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from server.record.audit.usage import Usage

if TYPE_CHECKING:
    from server.record.audit.record import AuditRecord  # which imports numpy: every command would wait for it


class SinkError(Exception):
    """An audit log cannot be opened or read; the message is one line without secrets."""


@dataclass(frozen=True)
class Filter:
    """Which records are wanted: the last `last` of those that match."""

    last: int
    key: str | None = None
    decision: str | None = None
    outcome: str | None = None

    @property
    def equal(self) -> dict[str, str]:
        """Field and value of what must match."""
        wanted = {"key": self.key, "decision": self.decision, "outcome": self.outcome}
        return {name: value for name, value in wanted.items() if value is not None}


class Sink(Protocol):
    """A place for records. Blocks: for a thread of its own."""

    def open(self) -> None:
        """Make ready. Raises whatever goes wrong; may be called again."""

    def write(self, records: Sequence[AuditRecord]) -> None:
        """Keep all records, or raise and keep none; written again, they are not there twice."""

    def close(self) -> None:
        """Let go of it."""


class Reader(Protocol):
    """A place that records are read from."""

    def read(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """Records, oldest first. Raises SinkError."""

    def usage(self) -> Usage:
        """The use of each key in all records. Raises SinkError."""
