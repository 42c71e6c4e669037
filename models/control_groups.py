"""Files that limit this process on Linux: of its control group and of all groups around it, in both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def limit_files(controller: str, v2: str, v1: str, cgroups: Path, membership: Path) -> Iterator[Path]:
    """Where the files named `v2` or `v1` of a controller may lie; nothing where there are no control groups.

    The root comes too: in a container the group's path may be the host's, while its files are mounted as the root.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        if not controllers:
            folder, name = cgroups, v2
        elif controller in controllers.split(","):
            folder, name = cgroups / controller, v1
        else:
            continue
        yield from (folder / each / name for each in (group, *group.parents))
