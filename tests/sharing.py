"""How pytest-xdist shares the tests out among processes: what uses one server or one set of models stays together."""

from __future__ import annotations

from typing import Any

from xdist.scheduler.loadscope import LoadScopeScheduling

BYTES_A_WORKER = 3 * 2**30  # a process with its models, and the servers that it starts
MOST_WORKERS = 8
TOGETHER = ("tests/operating/",)  # folders of which all files ask one server; elsewhere each file is for itself
LONGEST = (
    "tests/end_to_end/",
    "tests/operating/",
    "tests/steering/fitting/test_fit.py",
    "tests/models/test_paging.py",
    "tests/server/engine/",
)


def workers(cores: int, free_bytes: int) -> int:
    """How many processes run tests: one more than there are cores, as far as there is memory for them.

    A fifth of a run is waiting: for processes that start, for time to pass.
    """
    return max(1, min(cores + 1, free_bytes // BYTES_A_WORKER, MOST_WORKERS))


def longest_first(name: str) -> int:
    """The place in order of a test."""
    return next((place for place, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))


class ByServer(LoadScopeScheduling):  # type: ignore[misc]
    """A file, or a folder of `TOGETHER`, is run by one process, in the order of collection."""

    def __init__(self, config: Any, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # it would begin with the files of most tests, and end with the longest

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)
