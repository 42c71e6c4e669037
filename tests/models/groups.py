"""Control groups of a process, as files in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_groups(folder: Path, membership: str, files: Mapping[str, object]) -> tuple[Path, Path]:
    """Write the groups' files and the process's membership; returns where both are."""
    groups, own = folder / "groups", folder / "self"
    own.write_text(membership + "\n")
    for name, value in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return groups, own
