"""Folders that a long command writes to: made and tried before anything slow is done, and held by one run at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.cli.console import mistake

LOCK = ".lock"


def writable(option: str, folder: Path) -> Path:
    """The folder of an option, made if it is not there; a mistake where files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mistake(f"{option} {folder}: {error.strerror or error}")
    if not os.access(folder, os.W_OK):
        mistake(f"{option} {folder} cannot be written to")
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs away from a folder; a mistake that names the other one where there is one."""
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "unknown"
            mistake(f"process {other} works in {folder}; wait for it, or give another folder")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
