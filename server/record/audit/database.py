"""Audit records in SQLite or PostgreSQL, through SQLAlchemy Core."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any, get_args, get_type_hints

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from server.record.audit.record import AuditRecord, Outcome
from server.record.audit.sink import Filter, SinkError
from server.record.audit.usage import Usage, Used

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
LATE = timedelta(hours=1)  # a record has the time of its request's arrival, and is written at its end
TYPES: dict[type, type[sql.types.TypeEngine[Any]]] = {
    str: sql.Text,
    Outcome: sql.Text,
    int: sql.BigInteger,
    float: sql.Double,
    datetime: sql.DateTime,
}


def _column(name: str, hint: object) -> sql.Column[Any]:
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    column_type = sql.DateTime(timezone=True) if kind is datetime else TYPES[kind]()
    return sql.Column(
        name,
        column_type,
        primary_key=name == "record_id",
        nullable=types.NoneType in kinds,
        index=name in ("time", "request_id"),
    )


def make_table(metadata: sql.MetaData) -> sql.Table:
    """The table `autosteer_audit`: a column for each field of a record."""
    hints = get_type_hints(AuditRecord)
    return sql.Table(
        "autosteer_audit", metadata, *(_column(each.name, hints[each.name]) for each in fields(AuditRecord))
    )


class Database:
    """A table of records, made where there is none."""

    def __init__(self, url: str) -> None:
        """Raises SinkError if the driver is not installed or the URL is none."""
        try:
            parsed = sql.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self._engine = sql.create_engine(parsed, pool_pre_ping=True, connect_args=_connect_args(parsed))
        except ModuleNotFoundError as error:
            raise SinkError(
                f"the driver {error.name} is not installed; install autosteer-server[postgresql]"
            ) from error
        except SQLAlchemyError as error:
            raise SinkError(f"the audit log's URL cannot be used: {type(error).__name__}") from None
        self._metadata = sql.MetaData()
        self._table = make_table(self._metadata)

    def open(self) -> None:
        """Connect, and make the table; an older one gets the columns that it lacks. Raises SinkError."""
        try:
            self._metadata.create_all(self._engine)
            there = {column["name"] for column in sql.inspect(self._engine).get_columns(self._table.name)}
            with self._engine.begin() as connection:
                for column in self._table.columns:
                    if column.name not in there:
                        described = sql.schema.CreateColumn(column).compile(self._engine)
                        connection.execute(sql.text(f"ALTER TABLE {self._table.name} ADD COLUMN {described}"))
        except SQLAlchemyError as error:
            raise SinkError(_brief(error)) from None

    def write(self, records: Sequence[AuditRecord]) -> None:
        """Insert in one transaction; what an earlier try has left there already stays once. Raises SinkError."""
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(self._table).on_conflict_do_nothing()
        try:
            with self._engine.begin() as connection:
                connection.execute(statement, [asdict(record) for record in records])
        except SQLAlchemyError as error:
            raise SinkError(_brief(error)) from None

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def read(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """Records, oldest first. Raises SinkError."""
        table = self._table
        query = sql.select(table).filter_by(**wanted.equal).order_by(table.c.time.desc()).limit(wanted.last)
        for row in reversed(self._rows(query)):
            record = {str(name): value for name, value in row.items()}  # SQLAlchemy's names are no plain strings
            yield {**record, "time": _in_utc(row["time"])}

    def since(self, time: str | None) -> Iterator[dict[str, Any]]:
        """Records from an hour before a time on, oldest first: earlier ones may have been written later.

        Raises SinkError.
        """
        table = self._table
        query = sql.select(table).order_by(table.c.time)
        if time is not None:
            query = query.where(table.c.time >= datetime.fromisoformat(time) - LATE)
        try:
            with self._engine.connect() as connection:
                for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                    yield {**{str(name): value for name, value in row.items()}, "time": _in_utc(row["time"])}
        except SQLAlchemyError as error:
            raise SinkError(_brief(error)) from None

    def one(self, record_id: str) -> dict[str, Any] | None:
        """A record by its `record_id`. Raises SinkError."""
        rows = self._rows(sql.select(self._table).where(self._table.c.record_id == record_id))
        found = next((dict(row) for row in rows), None)
        return None if found is None else {str(name): value for name, value in found.items()}

    def usage(self) -> Usage:
        """The use of each key in the whole table. Raises SinkError."""
        key, time = self._table.c.key, self._table.c.time
        count, first, last = sql.func.count().label("n"), sql.func.min(time).label("a"), sql.func.max(time).label("z")
        rows = self._rows(sql.select(key, count, first, last).group_by(key))
        return {row["key"]: Used(row["n"], _in_utc(row["a"]), _in_utc(row["z"])) for row in rows}

    def _rows(self, query: sql.Select[Any]) -> Sequence[sql.RowMapping]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).mappings().all()
        except SQLAlchemyError as error:
            raise SinkError(_brief(error)) from None


def _in_utc(time: datetime) -> datetime:
    """SQLite keeps no zone: what is written is UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _connect_args(url: sql.URL) -> dict[str, Any]:
    if url.get_backend_name() != "postgresql":
        return {"timeout": CONNECT_SECONDS}
    return {"connect_timeout": CONNECT_SECONDS, "options": f"-c statement_timeout={STATEMENT_SECONDS * 1000}"}


def _brief(error: SQLAlchemyError) -> str:
    """The driver's own words, without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(error).__name__}: {' '.join(str(cause).split())}"[:300]
