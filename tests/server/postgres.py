"""A PostgreSQL server that the tests start, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql


def found(program: str) -> str | None:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(program, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


class PostgreSql:
    """A server of its own in a folder, with a socket there and no port; another user's where the tests run as root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._as: list[str] = []
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
            self._as = ["setpriv", "--reuid=postgres", "--clear-groups", "--"]
        self._run("initdb", "-A", "trust", "-U", "audit", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(found(program)), "-D", str(self._folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=self._folder)

    def start(self) -> None:
        options = f"-h '' -k {self._folder} -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    @property
    def url(self) -> str:
        return f"postgresql://audit@/postgres?host={self._folder}"


def running() -> Iterator[PostgreSql]:
    if found("initdb") is None or found("pg_ctl") is None:
        pytest.skip("no PostgreSQL server is installed")
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or "postgres" not in {u.pw_name for u in pwd.getpwall()}):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = PostgreSql(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def clear(url: str) -> None:
    engine = sql.create_engine(sql.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sql.text("DROP TABLE IF EXISTS autosteer_audit"))
        connection.execute(sql.text("DROP SCHEMA IF EXISTS autosteer_review CASCADE"))
    engine.dispose()
