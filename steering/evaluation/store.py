"""Every answer of a run on disk, by row, in one SQLite file: an interrupted run goes on where it was."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from steering.errors import RunError

FILE = "run.sqlite"


@dataclass(frozen=True)
class Output:
    """What one row was answered. `error` says why there is no answer; times are in seconds."""

    text: str
    tokens: int = 0
    finish: str = ""
    score: float | None = None
    flagged: bool | None = None  # the guard changed the answer; None: nothing was guarded
    detected: bool | None = None  # the score reached the threshold; remote answers only
    started: float | None = None  # of the epoch; remote answers only, as the next two
    first_token: float | None = None  # after `started`
    seconds: float | None = None
    error: str | None = None
    categories: Mapping[str, float] | None = None  # scores, in process and where the guard knows some


class Store:
    """The answers under one folder. What is put is on disk, all of it or nothing, when `put` returns."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """Open or begin a run. Raises RunError where the folder holds a run of another identity."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(folder / FILE)
            # A killed process loses nothing that was committed; only a power cut could.
            self._file.executescript(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                "CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL);"
                "CREATE TABLE IF NOT EXISTS outputs"
                " (variant TEXT, row TEXT, output TEXT NOT NULL, PRIMARY KEY (variant, row));"
            )
            self._check(folder, identity)
        except sqlite3.Error as error:
            raise RunError(f"{folder / FILE}: {error}") from error

    def _check(self, folder: Path, identity: Mapping[str, str]) -> None:
        known = dict(self._file.execute("SELECT name, value FROM identity"))
        changed = [name for name, value in identity.items() if known.get(name, value) != value]
        if changed:
            what = ", ".join(changed)
            raise RunError(f"{folder} holds a run with another {what}; give another --out, or remove that folder")
        with self._file:
            self._file.executemany("INSERT OR IGNORE INTO identity VALUES (?, ?)", identity.items())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def outputs(self, variant: str) -> dict[str, Output]:
        """All answers of one variant, by row."""
        rows = self._file.execute("SELECT row, output FROM outputs WHERE variant = ?", (variant,))
        return {row: Output(**json.loads(text)) for row, text in rows}

    def put(self, variant: str, outputs: Mapping[str, Output]) -> None:
        """Keep answers. Raises RunError, as with a full disk; what was kept before stays."""
        rows = [(variant, row, json.dumps(asdict(output))) for row, output in outputs.items()]
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise RunError(f"the answers could not be kept: {error}; what was kept before is safe") from error
