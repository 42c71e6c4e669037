"""Folders that a long command writes to: tried before anything slow is done, and held by one run at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.where import where_problem
from server.cli.console import mistake

LOCK = ".lock"


def writable(option: str, folder: Path) -> Path:
    """The folder of an option, as it is given; a mistake where it is none, or could not be made or written to."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        mistake(f"{option} {folder}: {nearest} is no folder")
    if not os.access(nearest, os.W_OK):
        mistake(f"{option} {folder}: {nearest} cannot be written to")
    return folder


def given_folder(option: str, folder: Path | None) -> None:
    """A mistake where the folder of an option is none."""
    if folder is not None and not folder.is_dir():
        mistake(f"{option} {folder}: {'a file, and no folder' if folder.exists() else 'there is no such folder'}")


def check_model(model: str) -> None:
    """A mistake where the path of a model holds none; ids of a hub are not looked up."""
    if (problem := where_problem(model)) is not None:
        mistake(f"--model: {problem}")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs away from a folder; a mistake that names the other one where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
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
