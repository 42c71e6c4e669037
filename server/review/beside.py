"""The reviews of an audit log: where they are kept, and what they are of."""

from __future__ import annotations

from server.record.audit.database import Database
from server.record.audit.sinks import audit_file, review_file
from server.review.sources import Lines, Table
from server.review.store import ReviewStore
from server.review.tables import PostgresTables, SqliteTables
from server.settings.groups import AuditSettings


def store_beside(audit: AuditSettings) -> ReviewStore:
    """The store beside a log: a file beside a file, tables beside a table in PostgreSQL. Nothing is opened yet."""
    url = audit.url.get_secret_value()
    path, lines = review_file(audit), audit_file(url)
    tables = PostgresTables(url) if path is None else SqliteTables(path)
    return ReviewStore(tables, Table(Database(url)) if lines is None else Lines(lines))
