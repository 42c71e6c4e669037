"""Where fixtures are, how tests are shared out among processes, and what is told at the end."""

from __future__ import annotations

import gc
import os
import re
from importlib import import_module
from typing import Any

import hypothesis
import psutil
import pytest

from tests import chance
from tests.sharing import ByServer, longest_first, workers

# No test is to fail by luck or by the clock: the same examples each time, however long one takes. `make test-slow`
# looks for others.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    chance.add_options(parser)
    parser.addoption("--served-by", choices=["own", "vllm"], default="own", help="Engine of the servers of all tests.")


def pytest_configure(config: pytest.Config) -> None:
    # Threads that wait for each other spin: two processes with two each on two cores take ten times as long. Set before
    # torch is imported, and for the processes and servers that are started.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("dist", "no") == "no":  # else this process runs no tests: its workers do, in which it is "no"
        config.pluginmanager.import_plugin("tests.fixtures")
    if hasattr(config, "workerinput"):  # a worker, which will import it all
        import_module("tests.end_to_end.forked").fork_from_here()
    if turns := config.getoption("turns"):
        config.pluginmanager.register(chance.Turns(turns, config.getoption("within")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So that no process is left alone with a long file at the end."""
    items.sort(key=lambda item: longest_first(item.nodeid))


def pytest_collection_finish() -> None:
    """What is imported stays: no collection of garbage walks through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` stands for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers(cores, psutil.virtual_memory().available)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    """Tests that share a server or a model go to one process."""
    return ByServer(config, log)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line about tests that were skipped for want of a program, and how to have them."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    packages = [found[1] for reason in reasons if (found := re.search(r"\(Debian: ([\w.-]+)\)", reason))]
    if packages:
        needed = " ".join(sorted(set(packages)))
        terminalreporter.write_line(
            f"{len(packages)} tests were skipped for want of programs; to have them: apt-get install {needed}",
            yellow=True,
        )
