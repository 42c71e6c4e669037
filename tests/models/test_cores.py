"""The cores that there are: of the machine, or of the smallest quota around this process, version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.cores import machine_cores
from tests.models.groups import write_groups

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

GROUPS = {
    "v2, a container": ("0::/", {"cpu.max": "100000 100000"}, 1),
    "v2, less than one": ("0::/", {"cpu.max": "20000 100000"}, 1),
    "v2, one and a half": ("0::/", {"cpu.max": "150000 100000"}, 1),
    "v2, no limit": ("0::/", {"cpu.max": "max 100000"}, HERE),
    "v2, of the slice": (
        "0::/my.slice/a.service",
        {"my.slice/a.service/cpu.max": "max 100000", "my.slice/cpu.max": "100000 100000"},
        1,
    ),
    "v1, a container": (
        "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "50000"},
        1,
    ),
    "v1, no limit": ("5:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, HERE),
    "more than there are": ("0::/", {"cpu.max": "99900000 100000"}, HERE),
    "no files": ("0::/", {}, HERE),
}


@pytest.mark.parametrize(("membership", "files", "expected"), GROUPS.values(), ids=list(GROUPS))
def test_the_smallest_quota_holds(tmp_path: Path, membership: str, files: dict[str, str], expected: int) -> None:
    assert machine_cores(*write_groups(tmp_path, membership, files)) == expected


def test_several_cores_of_a_larger_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(64)}, raising=False)
    assert machine_cores(*write_groups(tmp_path, "0::/", {"cpu.max": "450000 100000"})) == 4
