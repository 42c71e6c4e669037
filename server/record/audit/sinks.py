"""Where audit records go, by the scheme of the URL."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from server.record.audit.sink import Reader, Sink, SinkError
from server.settings.groups import AuditSettings


def make_sink(settings: AuditSettings) -> Sink:
    """The sink of the settings' URL; a file is opened at once. Raises SinkError."""
    url = settings.url.get_secret_value()
    if (path := audit_file(url)) is not None:
        from server.record.audit.json_lines import JsonLines

        lines = JsonLines(path, max_bytes=settings.max_bytes, max_files=settings.max_files)
        try:
            lines.open()
        except OSError as error:
            raise SinkError(f"cannot open the audit log {path}: {error.strerror or error}") from error
        return lines
    from server.record.audit.database import Database

    return Database(url)


def sink_problem(settings: AuditSettings) -> str | None:
    """Why `make_sink` or its first record would fail, as far as that can be told without writing."""
    url = settings.url.get_secret_value()
    path = audit_file(url) or _sqlite_file(url)
    if path is None:
        return _driver_problem(url)
    if not path.parent.is_dir():
        return f"audit: the folder {path.parent} is not here"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"audit: {path} cannot be written to"
    return None


def _driver_problem(url: str) -> str | None:
    """Why no database can be asked by this URL; none is connected to."""
    from server.record.audit.database import Database

    try:
        Database(url).close()
    except SinkError as error:
        return f"audit: {error}"
    return None


def make_reader(url: str) -> Reader:
    """Reads what a sink of this URL has written. Raises SinkError."""
    if (path := audit_file(url)) is not None:
        from server.record.audit.json_lines import JsonLinesReader

        return JsonLinesReader(path)
    from server.record.audit.database import Database

    return Database(url)


def _sqlite_file(url: str) -> Path | None:
    if urlsplit(url).scheme != "sqlite":
        return None
    from sqlalchemy import make_url

    database = make_url(url).database
    return Path(database) if database else None


def review_file(settings: AuditSettings) -> Path | None:
    """Where reviews of an audit log are kept: beside its file; None where it is none."""
    url = settings.url.get_secret_value()
    path = audit_file(url) or _sqlite_file(url)
    return None if path is None else path.with_name(f"{path.name}.reviews.db")


def audit_file(url: str) -> Path | None:
    """The file of a log of JSON lines; None of another."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
