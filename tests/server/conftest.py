"""The small internet that images are fetched from, and databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.server.postgres import PostgreSql, clear, running
from tests.server.web import World


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who signs its certificates."""
    return trustme.CA()


@pytest.fixture
def world(authority: trustme.CA) -> World:
    """One with nothing asked of it yet."""
    return World(authority)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSql]:
    """A server; skips the test where none is installed."""
    yield from running()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'audit.db'}"
    server: PostgreSql = request.getfixturevalue("postgresql")
    clear(server.url)
    return server.url
