"""A file of JSON lines that never holds half a record for long, and its older parts `NAME.1`, `NAME.2`, ..."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from server.record.audit.record import AuditRecord
from server.record.audit.sink import Filter, SinkError
from server.record.audit.usage import Usage, Used, joined

logger = logging.getLogger(__name__)

BLOCK = 65536
BEGINNING = b'{"time":'  # of a record; within a text its marks would be escaped


class JsonLines:
    """Appends whole batches. What a failed write or a kill leaves of a line is cut off before the next one."""

    def __init__(self, path: Path, *, max_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._fd = -1
        self._size = 0
        self._torn = False

    def open(self) -> None:
        """Open the file, cut off a torn last line, and keep other servers away. Raises OSError."""
        if self._fd != -1:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(0, "another server writes to it") from None
            size = os.fstat(fd).st_size
            whole = _end_of_last_line(fd, size)
            if whole != size:
                logger.warning("%s ended within a record; its last %d bytes are cut off", self._path, size - whole)
                os.ftruncate(fd, whole)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size, self._torn = fd, whole, False

    def write(self, records: Sequence[AuditRecord]) -> None:
        """Append all records, to the disk. Raises OSError, and nothing of them stays."""
        data = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
        self._reopen_if_moved()
        if self._torn:
            self._cut_off()
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            with contextlib.suppress(OSError):  # of what is no file on a disk
                os.fsync(self._fd)
        except BaseException:
            self._torn = True
            with contextlib.suppress(OSError):
                self._cut_off()
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def _cut_off(self) -> None:
        if stat.S_ISREG(os.fstat(self._fd).st_mode):  # a device keeps nothing that could be cut off
            os.ftruncate(self._fd, self._size)
        self._torn = False

    def _reopen_if_moved(self) -> None:
        """Follow the name: a file that somebody moved or deleted is begun anew."""
        try:
            same = self._fd != -1 and os.path.samestat(os.stat(self._path), os.fstat(self._fd))  # noqa: PTH116
        except FileNotFoundError:
            same = False
        if not same:
            self.close()
            self.open()

    def _rotate(self) -> None:
        """NAME.1 becomes NAME.2, and so on; the oldest goes. A kill in between leaves a gap, which is no harm."""
        for part in _numbered(self._path):
            if part[0] >= self._max_files:
                part[1].unlink()
        for number in range(self._max_files - 1, 0, -1):
            older = _part(self._path, number - 1)
            if older.exists():
                older.replace(_part(self._path, number))
        if self._max_files == 1:
            self._path.unlink()
        self.close()
        self.open()


class JsonLinesReader:
    """Reads a log that may be in use, or may have ended with a kill, or on a disk that lost a part of it.

    Every whole record is read; a warning tells how many lines were none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """Records, oldest first. Raises SinkError."""
        matching = (record for record in self._records() if wanted.equal.items() <= record.items())
        yield from deque(matching, maxlen=wanted.last)

    def usage(self) -> Usage:
        """The use of each key in all files of the log. Raises SinkError."""
        times = ((record["key"], datetime.fromisoformat(record["time"])) for record in self._records())
        return joined((name, Used(1, time, time)) for name, time in times)

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            raise SinkError(f"there is no audit log {self._path}")
        for part in parts(self._path):
            damaged = 0
            with part.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        continue  # the one that is being written, or that a kill cut off
                    text = line.strip(b"\0 \t\r\n")  # some file systems leave zeros after a crash
                    record = whole_record(text)
                    damaged += text != b"" and (record is None or text.rfind(BEGINNING) > 0)
                    if record is not None:
                        yield record
            if damaged:
                logger.warning("%s holds %d damaged lines; what was no whole record is left out", part, damaged)


def whole_record(line: bytes) -> dict[str, Any] | None:
    """The record of a line, also after the first half of another; None if there is no whole one."""
    try:
        found = orjson.loads(line[max(0, line.rfind(BEGINNING)) :])
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and found.keys() >= {"time", "key"} else None


def parts(path: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return [part for _, part in sorted(_numbered(path), reverse=True)] + [path]


def _numbered(path: Path) -> list[tuple[int, Path]]:
    return [
        (int(number), part)
        for part in path.parent.glob(f"{path.name}.*")
        if (number := part.name.removeprefix(f"{path.name}.")).isdecimal()
    ]


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _end_of_last_line(fd: int, size: int) -> int:
    """Where the last newline ends; 0 if there is none."""
    end = size
    while end > 0:
        begin = max(0, end - BLOCK)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        if newline != -1:
            return begin + newline + 1
        end = begin
    return 0
