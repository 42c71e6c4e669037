"""One guarded and one unguarded demo server for all end-to-end tests."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ON_VLLM, ServerProcess


@pytest.fixture(scope="session")
def guarded(pytestconfig: pytest.Config) -> Iterator[ServerProcess]:
    """The bundled model with its guard, as `make serve` serves it; scores exposed, completions of token ids taken."""
    with _served(pytestconfig, "--expose-scores", "--completions", "on") as server:
        yield server


@pytest.fixture(scope="session")
def unguarded(pytestconfig: pytest.Config) -> Iterator[ServerProcess]:
    """The same model with the guard off."""
    with _served(pytestconfig, "--mode", "off") as server:
        yield server


def _served(config: pytest.Config, *arguments: str) -> AbstractContextManager[ServerProcess]:
    """A server on the engine that the tests are run for."""
    if config.getoption("served_by") == "vllm":
        return ServerProcess([*ON_VLLM, *arguments], start_seconds=500)
    return ForkedServer(arguments)
