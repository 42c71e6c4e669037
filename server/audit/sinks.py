"""Where audit records go, by the scheme of the URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from server.audit.record import AuditRecord
from server.config import AuditSettings


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


def make_sink(settings: AuditSettings) -> Sink:
    """The sink of the settings' URL; a file is opened at once. Raises SinkError."""
    url = settings.url.get_secret_value()
    if (path := _file_of(url)) is not None:
        from server.audit.json_lines import JsonLines

        lines = JsonLines(path, max_bytes=settings.max_bytes, max_files=settings.max_files)
        try:
            lines.open()
        except OSError as error:
            raise SinkError(f"cannot open the audit log {path}: {error.strerror or error}") from error
        return lines
    from server.audit.database import Database

    return Database(url)


def make_reader(url: str) -> Reader:
    """Reads what a sink of this URL has written. Raises SinkError."""
    if (path := _file_of(url)) is not None:
        from server.audit.json_lines import JsonLinesReader

        return JsonLinesReader(path)
    from server.audit.database import Database

    return Database(url)


def _file_of(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
