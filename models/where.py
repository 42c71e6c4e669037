"""Where a model is: a folder, or an id of a hub. Imports nothing slow, so that a mistyped path is told at once."""

from __future__ import annotations

from pathlib import Path


def where_problem(name: str) -> str | None:
    """Why no model can be loaded from `name`; None where there is one, or where a hub may have it."""
    path = Path(name)
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"no model in {name}: config.json is missing"
    if path.exists():
        return f"no model in {name}: it is a file, and no folder"
    # A hub id is "owner/name"; anything else that is not a folder is a mistyped path.
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        return f"no such model folder: {name}"
    return None
