"""One guarded and one unguarded demo server for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess


@pytest.fixture(scope="session")
def guarded() -> Iterator[ServerProcess]:
    """The bundled model with its guard, as `make serve` serves it; scores exposed, completions of token ids taken."""
    with ForkedServer(["--expose-scores", "--completions", "on"]) as server:
        yield server


@pytest.fixture(scope="session")
def unguarded() -> Iterator[ServerProcess]:
    """The same model with the guard off."""
    with ForkedServer(["--mode", "off"]) as server:
        yield server
