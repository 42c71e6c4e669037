"""How many cores there are for this process: those it may run on, or what its control groups pay for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from models.control_groups import CGROUPS, MEMBERSHIP, limit_files


def machine_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Whole cores that threads of this process can be busy on at once, at least one.

    More threads than a quota pays for are stopped within each period, all at a time: a step would stand still.
    """
    found = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    for file in limit_files("cpu", "cpu.max", "cpu.cfs_quota_us", cgroups, membership):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            quota, _, period = file.read_text().strip().partition(" ")
            microseconds = int(quota)
            if microseconds > 0:  # version 1 says -1 where there is no limit
                found.append(microseconds / int(period or file.with_name("cpu.cfs_period_us").read_text()))
    return max(1, int(min(found)))
