"""The memory that there is: of the machine, or of the smallest control group around this process, version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from models.cache import CacheShape, PagedCache
from models.memory import machine_memory
from tests.models.groups import write_groups

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LIMIT = 256 * 2**20
NONE = 9223372036854771712  # what version 1 says where there is no limit

GROUPS = {
    "v2, a container": ("0::/", {"memory.max": LIMIT}, LIMIT),
    "v2, no limit": ("0::/", {"memory.max": "max"}, PHYSICAL),
    "v2, a service": ("0::/system.slice/a.service", {"system.slice/a.service/memory.max": LIMIT}, LIMIT),
    "v2, of the slice": (
        "0::/my.slice/a.service",
        {"my.slice/a.service/memory.max": "max", "my.slice/memory.max": LIMIT},
        LIMIT,
    ),
    "v1, a container": (
        "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
        {"memory/memory.limit_in_bytes": LIMIT, "cpu,cpuacct/memory.limit_in_bytes": 1},
        LIMIT,
    ),
    "v1, a group": (
        "4:memory:/a/b\n0::/x",
        {"memory/a/memory.limit_in_bytes": LIMIT, "memory/a/b/memory.limit_in_bytes": NONE},
        LIMIT,
    ),
    "v1, no limit": ("4:memory:/", {"memory/memory.limit_in_bytes": NONE}, PHYSICAL),
    "more than there is": ("0::/", {"memory.max": 2 * PHYSICAL}, PHYSICAL),
    "no files": ("0::/", {}, PHYSICAL),
}


@pytest.mark.parametrize(("membership", "files", "expected"), GROUPS.values(), ids=list(GROUPS))
def test_the_smallest_limit_holds(tmp_path: Path, membership: str, files: dict[str, int | str], expected: int) -> None:
    assert machine_memory(*write_groups(tmp_path, membership, files)) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert machine_memory(tmp_path, tmp_path / "none") == PHYSICAL


def test_a_cache_takes_no_memory_before_it_is_used() -> None:
    shape = CacheShape(2, 4, 64, torch.bfloat16, torch.device("cpu"))
    before = psutil.Process().memory_info().rss
    cache = PagedCache(shape, 2**30 // shape.block_bytes, keep=True)
    assert psutil.Process().memory_info().rss - before < 2**28
    assert not cache.layers[1][1][-1].any()
