"""One stack, and one load sent through it before anything else, for all tests that do not break it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.operating.load import Watched, run_scripted_load
from tests.operating.stack import Stack

REQUESTS = 500  # drift is told from the hundredth harmless score of a policy on a server


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Gateway, two servers and Prometheus, after the load."""
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        seen = run_scripted_load(running, REQUESTS)
        running.wait_for_scrape()
        yield Watched(running, seen, at=time.time())


@pytest.fixture(scope="session")
def stack(watched: Watched) -> Stack:
    """The stack alone."""
    return watched.stack
