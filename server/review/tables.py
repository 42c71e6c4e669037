"""The tables of reviews: in a SQLite file of their own, or in a schema of their own beside a log in PostgreSQL.

Both are asked in the same SQL, with values as `:name`.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from server.record.audit.database import CONNECT_SECONDS, STATEMENT_SECONDS
from server.record.audit.sink import SinkError

if TYPE_CHECKING:
    import psycopg

Values = Mapping[str, object]
NONE: Values = MappingProxyType({})
INDEX = "2"  # another form of the index is thrown away, and filled anew
SCHEMA = "autosteer_review"  # in PostgreSQL
KEPT = """
CREATE TABLE IF NOT EXISTS read (source TEXT PRIMARY KEY, upto TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS labels (
    record_id TEXT NOT NULL, reviewer TEXT NOT NULL, label TEXT NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (record_id, reviewer)
);
CREATE TABLE IF NOT EXISTS history (
    id {number}, reviewer TEXT NOT NULL, record_id TEXT NOT NULL, at TEXT NOT NULL, label TEXT NOT NULL,
    note TEXT NOT NULL, before TEXT, undone INTEGER NOT NULL DEFAULT 0
)
"""
FILLED = """
DROP TABLE IF EXISTS records;
CREATE TABLE records (
    id {number}, record_id TEXT NOT NULL UNIQUE, place TEXT NOT NULL, time {time} NOT NULL, key TEXT, policy TEXT,
    decision TEXT NOT NULL, flagged INTEGER NOT NULL, sample INTEGER NOT NULL, score DOUBLE PRECISION, categories TEXT,
    shadow TEXT, shadow_flagged INTEGER, changed INTEGER NOT NULL
);
CREATE INDEX records_flagged ON records (flagged, time, id);
CREATE INDEX records_sample ON records (sample, time, id);
CREATE INDEX records_changed ON records (changed, time, id);
CREATE INDEX records_time ON records (time, id);
DELETE FROM read
"""


class Transaction(Protocol):
    """What is done to the tables at once, or not at all."""

    def rows(self, query: str, values: Values = NONE) -> list[dict[str, Any]]:
        """The rows of a query."""

    def run(self, statement: str, *rows: Values) -> int:
        """Run a statement once for each row of values; how many rows of the tables that has changed."""


class Tables(Protocol):
    """Where reviews are kept. Any thread may use it, one at a time. Raises SinkError."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction, which ends with the block."""

    def close(self) -> None:
        """Close the connection, which is opened again where it is needed."""


def one(transaction: Transaction, query: str, values: Values = NONE) -> dict[str, Any] | None:
    """The first row of a query."""
    return next(iter(transaction.rows(query, values)), None)


def _prepare(transaction: Transaction, number: str, time: str) -> None:
    """Make the tables that are not there, and the index anew where it is of another version."""
    for statement in KEPT.format(number=number).split(";"):
        transaction.run(statement, NONE)
    found = one(transaction, "SELECT upto FROM read WHERE source = 'index'")
    if found is None or found["upto"] != INDEX:
        for statement in FILLED.format(number=number, time=time).split(";"):
            transaction.run(statement, NONE)
        transaction.run("INSERT INTO read VALUES ('index', :version)", {"version": INDEX})


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class _Connected(Generic[C]):
    """One connection, opened when it is first needed, for one transaction at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: C | None = None

    def close(self) -> None:
        """See `Tables`."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


# SQLite ------------------------------------------------------------------------------------------------------------


class SqliteTables(_Connected[sqlite3.Connection]):
    """The tables in a file. What a transaction has written is on the disk when it ends."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin a transaction, which ends with the block. Raises SinkError."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._opened()
                with self._connection:
                    yield _InSqlite(self._connection)
            except sqlite3.Error as error:
                raise SinkError(f"{self._path}: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        with connection:
            _prepare(_InSqlite(connection), "INTEGER PRIMARY KEY", "TEXT")
        return connection


class _InSqlite:
    """See `Transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, query: str, values: Values = NONE) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(query, dict(values))]

    def run(self, statement: str, *rows: Values) -> int:
        if len(rows) == 1:  # tables can be made
            return max(0, self._connection.execute(statement, dict(rows[0])).rowcount)
        return max(0, self._connection.executemany(statement, rows).rowcount)


# PostgreSQL --------------------------------------------------------------------------------------------------------


class PostgresTables(_Connected["psycopg.Connection[dict[str, Any]]"]):
    """The tables in a schema of their own, for all servers that write to the log beside it. `url`: the log's."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin a transaction, which ends with the block. Raises SinkError."""
        import psycopg

        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._opened()
                with self._connection.transaction():
                    yield _InPostgres(self._connection)
            except psycopg.Error as error:
                raise SinkError(" ".join(str(error).split())[:300]) from None  # its chain may hold the password

    def _opened(self) -> psycopg.Connection[dict[str, Any]]:
        import psycopg
        from psycopg.rows import dict_row

        options = f"-c search_path={SCHEMA} -c statement_timeout={STATEMENT_SECONDS * 1000}"
        connection = psycopg.connect(
            self._url.replace("postgresql+psycopg://", "postgresql://", 1),
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_SECONDS,
            options=options,
        )
        with connection.transaction():
            # Two servers that begin together: one of them waits.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [SCHEMA])
            if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [SCHEMA]).fetchall():
                connection.execute(f"CREATE SCHEMA {SCHEMA}")
            _prepare(_InPostgres(connection), "BIGSERIAL PRIMARY KEY", 'TEXT COLLATE "C"')
        return connection


class _InPostgres:
    """See `Transaction`."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def rows(self, query: str, values: Values = NONE) -> list[dict[str, Any]]:
        return self._connection.execute(_named(query), values).fetchall()

    def run(self, statement: str, *rows: Values) -> int:
        with self._connection.cursor() as cursor:
            cursor.executemany(_named(statement), rows)
            return max(0, cursor.rowcount)


@cache
def _named(query: str) -> bytes:
    """The query with the driver's marks for its values."""
    return re.sub(r":([a-z_]+)", r"%(\1)s", query).encode()
