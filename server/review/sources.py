"""Where reviewed records come from: an audit log of either kind, read from where it was left, and again by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from server.record.audit.database import Database
from server.record.audit.json_lines import parts, whole_record

Record = Mapping[str, Any]


class Found(NamedTuple):
    """A record, where it stands, and how far its source has been read with it."""

    record: Record
    place: str
    source: str
    read: str


class Source(Protocol):
    """An audit log. Raises SinkError and OSError."""

    def new(self, read: Mapping[str, str]) -> Iterator[Found]:
        """Records that have come since it was read; `read`: how far each source was read. Some may come again."""

    def at(self, place: str, record_id: str) -> Record | None:
        """The record that stood at a place; None if it is gone."""


class Lines:
    """A log of JSON lines and its older parts. A part keeps its inode when it is renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def new(self, read: Mapping[str, str]) -> Iterator[Found]:
        """Records that have come since the files were read; `read`: how far each was. Some may come again."""
        for part in self._parts():
            with part.open("rb") as file:
                stat = part.stat()
                source, at = str(stat.st_ino), int(read.get(str(stat.st_ino), "0"))
                at = at if at <= stat.st_size else 0  # another file with the same number
                file.seek(at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    begin, at = at, at + len(line)
                    record = whole_record(line.strip(b"\0 \t\r\n"))
                    if record is not None:
                        yield Found(record, f"{source}:{begin}", source, str(at))

    def at(self, place: str, record_id: str) -> Record | None:
        """The record that stood at a place in a file; None if it is gone."""
        source, _, begin = place.partition(":")
        for part in self._parts():
            if str(part.stat().st_ino) == source:
                with part.open("rb") as file:
                    file.seek(int(begin))
                    found = whole_record(file.readline().strip(b"\0 \t\r\n"))
                return found if found is not None and found.get("record_id") == record_id else None
        return None

    def _parts(self) -> list[Path]:
        return [part for part in parts(self._path) if part.exists()]


class Table:
    """A log in a database, where an earlier record may be written after a later one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def new(self, read: Mapping[str, str]) -> Iterator[Found]:
        """Records that have come since the table was read; `read`: how far it was. Some may come again."""
        for record in self._database.since(read.get("table")):
            yield Found(record, record["record_id"], "table", record["time"].isoformat())

    def at(self, place: str, record_id: str) -> Record | None:  # noqa: ARG002
        """The record of this id; None if it is gone."""
        return self._database.one(record_id)
