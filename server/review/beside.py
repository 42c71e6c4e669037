"""The reviews of an audit log: where they are kept, and what they are of."""

from __future__ import annotations

from server.record.audit.database import Database
from server.record.audit.sinks import audit_file, review_file
from server.review.sources import Lines, Table
from server.review.store import ReviewStore
from server.settings.groups import AuditSettings


def store_beside(audit: AuditSettings) -> ReviewStore | None:
    """The store beside a log that is a file; None where it is none. Nothing is opened yet."""
    path, url = review_file(audit), audit.url.get_secret_value()
    if path is None:
        return None
    lines = audit_file(url)
    return ReviewStore(path, Table(Database(url)) if lines is None else Lines(lines))
