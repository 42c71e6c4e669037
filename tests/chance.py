"""`make test-chance`: tests that wait for other threads and processes, again and again beside a full load of each core.

A turn is once each of them; they are run turn by turn, until all turns are over or the time is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

TURN = "turn"
# Ends with the time that it is given, or with the process that has started it.
_SPIN = """
import os, sys, time
parent, end = os.getppid(), time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and os.getppid() == parent:
    sum(range(100_000))
"""


def add_options(parser: pytest.Parser) -> None:
    """Those of `make test-chance`."""
    group = parser.getgroup("chance")
    group.addoption("--turns", type=int, default=0, help="run each test so often, beside a full load of each core")
    group.addoption("--within", type=float, default=3600.0, help="begin no test after so many seconds of `--turns`")


class Turns:
    """The plugin: each test that is marked `chance` once a turn, others not at all.

    `seconds`: after which nothing is begun, and the load has an end.
    """

    def __init__(self, turns: int, seconds: float) -> None:
        self._turns = turns
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._run: list[int] = []
        self._failed: list[str] = []
        self._load = ExitStack()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test that is marked so many times."""
        if metafunc.definition.get_closest_marker("chance") is None:
            return
        metafunc.fixturenames.append(TURN)
        metafunc.parametrize(TURN, range(self._turns), ids=[f"{TURN} {number + 1}" for number in range(self._turns)])

    @pytest.fixture
    def turn(self, request: pytest.FixtureRequest) -> int:
        """Which turn it is."""
        number: int = request.param
        return number

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Turn by turn."""
        items[:] = sorted((item for item in items if item.get_closest_marker("chance")), key=_turn_of)

    def pytest_sessionstart(self) -> None:
        """Begin the load."""
        self._load.enter_context(full_load(self._seconds))

    def pytest_sessionfinish(self) -> None:
        """End it."""
        self._load.close()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Nothing is begun when the time is over."""
        if time.monotonic() > self._end:
            pytest.skip("the time is over")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count."""
        if report.failed:
            self._failed.append(report.nodeid)
        elif report.when == "call":
            self._run.append(1)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line."""
        terminalreporter.write_line(
            f"beside {os.cpu_count()} processes that compute: {len(self._run)} tests passed, {len(self._failed)} failed"
        )


def _turn_of(item: pytest.Item) -> int:
    number: int = item.callspec.params[TURN]  # type: ignore[attr-defined]
    return number


@contextmanager
def full_load(seconds: float) -> Iterator[None]:
    """A process for each core that computes without pause, for at most so long."""
    command = [sys.executable, "-c", _SPIN, str(seconds)]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.wait()
