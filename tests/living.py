"""Processes that may end while they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil


def living(processes: Iterable[psutil.Process], is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The processes of which something is true; one that ended meanwhile is left out."""
    found: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if is_wanted(process):
                found.append(process)
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has computed so far; 0 of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return float(sum(process.cpu_times()[:2]))
    return 0.0


def resident_bytes(process: psutil.Process) -> int:
    """Memory that a process has; 0 of one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0
