"""Audit records in SQLite, and in a PostgreSQL server that the tests start where one is installed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import sqlalchemy as sql

from server.record.audit.database import Database
from server.record.audit.sink import Filter, SinkError
from server.record.audit.sinks import make_reader, make_sink
from tests.server.postgres import PostgreSql, clear
from tests.server.records import audit_settings, record

ALL = Filter(last=10**6)


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def ids(url: str, wanted: Filter = ALL) -> list[str]:
    return [each["request_id"] for each in make_reader(url).read(wanted)]


def test_records_come_back_as_they_were(url: str) -> None:
    sink = make_sink(audit_settings(url=url))
    sink.open()
    sink.open()
    made = record(1, key="shop", score=0.25, status=200, threshold=1e-9, prompt_tokens=2**40, content='["é"]')
    sink.write([made, record(2)])
    sink.close()
    first, second = make_reader(url).read(ALL)
    assert first == {name: getattr(made, name) for name in first}
    assert (second["request_id"], second["key"], second["score"]) == ("req-2", None, None)


def test_a_batch_that_is_written_twice_is_there_once(url: str) -> None:
    sink = Database(url)
    sink.open()
    batch = [record(number) for number in range(5)]
    sink.write(batch[:3])
    sink.write(batch)
    assert ids(url) == [f"req-{number}" for number in range(5)]


def test_a_table_of_an_older_version_gets_its_columns(url: str) -> None:
    sink = Database(url)
    sink.open()
    sink.write([record(1, score=0.25)])
    parsed = sql.make_url(url)
    engine = sql.create_engine(parsed.set(drivername=parsed.drivername.replace("postgresql", "postgresql+psycopg")))
    with engine.begin() as connection:
        connection.execute(sql.text("ALTER TABLE autosteer_audit DROP COLUMN score"))
    engine.dispose()
    newer = Database(url)
    newer.open()
    newer.write([record(2, score=0.5)])
    assert [each["score"] for each in newer.read(ALL)] == [None, 0.5]


def test_filters_and_the_last(url: str) -> None:
    sink = Database(url)
    sink.open()
    sink.write([record(n, key="ab"[n % 2], decision="pass" if n < 5 else "steered") for n in range(10)])
    assert ids(url, Filter(last=2, key="a")) == ["req-6", "req-8"]
    assert ids(url, Filter(last=9, decision="pass", key="b")) == ["req-1", "req-3"]
    assert ids(url, Filter(last=3, outcome="completed")) == ["req-7", "req-8", "req-9"]


def test_a_server_that_goes_away_is_an_error_and_its_return_is_enough(postgresql: PostgreSql) -> None:
    clear(postgresql.url)
    sink = Database(postgresql.url)
    sink.open()
    sink.write([record(1)])
    postgresql.stop()
    try:
        with pytest.raises(SinkError, match="OperationalError"):
            sink.write([record(2)])
    finally:
        postgresql.start()
    sink.write([record(2)])
    assert ids(postgresql.url) == ["req-1", "req-2"]
    sink.close()


def test_errors_tell_no_password(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        sink = Database(f"postgresql://u:SECRET@127.0.0.1:{closed.getsockname()[1]}/d")
        with pytest.raises(SinkError) as caught:
            sink.open()
    assert "SECRET" not in str(caught.value)
    with pytest.raises(SinkError, match="unable to open database file"):
        Database(f"sqlite:///{tmp_path}/none/audit.db").open()
    with pytest.raises(SinkError, match="no such table"):
        list(Database(f"sqlite:///{tmp_path}/empty.db").read(ALL))
