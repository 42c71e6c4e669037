"""How much memory there is for this process: the machine's, or what its control groups leave of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from models.control_groups import CGROUPS, MEMBERSHIP, limit_files


def machine_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes of memory of this machine, or of the container or service that this runs in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in limit_files("memory", "memory.max", "memory.limit_in_bytes", cgroups, membership):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int(file.read_text()))
    return min(found)
