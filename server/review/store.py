"""The SQLite file of reviews: an index of audit records, and what reviewers said of them.

The index is filled from the audit log and may be thrown away; labels are kept with the record that they are of. Each
label is on the disk before it is told to be there.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from server.review.sources import Found, Record, Source

Label = Literal["rightly flagged", "wrongly flagged", "missed", "rightly passed"]
BATCH = 2_000  # records of one transaction
SAMPLE = 50  # of records that were not flagged, one in so many is in the sample
SAID = ("label", "note", "at")  # what changes of a label; the record that it is of is kept once
SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, record_id TEXT NOT NULL UNIQUE, place TEXT NOT NULL, time TEXT NOT NULL, key TEXT,
    policy TEXT, decision TEXT NOT NULL, flagged INTEGER NOT NULL, sample INTEGER NOT NULL, score REAL, categories TEXT
);
CREATE INDEX IF NOT EXISTS records_flagged ON records (flagged, time, id);
CREATE INDEX IF NOT EXISTS records_sample ON records (sample, time, id);
CREATE INDEX IF NOT EXISTS records_time ON records (time, id);
CREATE TABLE IF NOT EXISTS read (source TEXT PRIMARY KEY, upto TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS labels (
    record_id TEXT NOT NULL, reviewer TEXT NOT NULL, label TEXT NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (record_id, reviewer)
);
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY, reviewer TEXT NOT NULL, record_id TEXT NOT NULL, at TEXT NOT NULL, label TEXT NOT NULL,
    note TEXT NOT NULL, before TEXT, undone INTEGER NOT NULL DEFAULT 0
);
"""


@dataclass(frozen=True)
class Wanted:
    """Which records are to be reviewed; `since` is a time as ISO 8601 has it."""

    which: Literal["flagged", "sample", "all"] = "flagged"
    since: str | None = None
    policy: str | None = None
    key: str | None = None
    decision: str | None = None
    category: str | None = None
    least: float | None = None
    most: float | None = None
    labelled: bool = False  # also what this reviewer has labelled

    def where(self, reviewer: str) -> tuple[str, dict[str, object]]:
        """The condition in SQL, and its values."""
        values = {**self.__dict__, "reviewer": reviewer}
        parts = {"flagged": ["flagged = 1"], "sample": ["sample = 1"], "all": []}[self.which]
        if self.since is not None:
            parts.append("time >= :since")
        parts += [f"{name} = :{name}" for name in ("policy", "key", "decision") if values[name] is not None]
        if self.category is not None:
            parts.append("EXISTS (SELECT 1 FROM json_each(records.categories) WHERE value = :category)")
        if self.least is not None:
            parts.append("score >= :least")
        if self.most is not None:
            parts.append("score <= :most")
        if not self.labelled:
            parts.append(
                "NOT EXISTS (SELECT 1 FROM labels WHERE labels.record_id = records.record_id AND reviewer = :reviewer)"
            )
        return " AND ".join(parts) or "1", values


class Item(NamedTuple):
    """One record as it is reviewed; `mine` is this reviewer's label, `others` what others said, told once `mine` is."""

    id: int
    record: Record | None  # None: the audit log has it no more
    flagged: bool
    mine: Mapping[str, Any] | None
    others: Sequence[Mapping[str, Any]]


class ReviewStore:
    """One file. Any thread may use it, one at a time."""

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._source = source
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    # the index -------------------------------------------------------------------------------------------------

    def fill(self) -> int:
        """Take in what has come to the audit log; tells how many records. Others may use the store in between."""
        with self._using() as connection:
            read = dict(connection.execute("SELECT source, upto FROM read").fetchall())
        taken, batch = 0, list[Found]()
        for found in self._source.new(read):
            batch.append(found)
            if len(batch) == BATCH:
                taken += self._take(batch)
                batch.clear()
        return taken + self._take(batch)

    def _take(self, batch: Sequence[Found]) -> int:
        rows = [row for found in batch if (row := _row(found)) is not None]
        with self._using() as connection:
            cursor = connection.executemany(
                "INSERT OR IGNORE INTO records (record_id, place, time, key, policy, decision, flagged, sample, score, "
                "categories) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.executemany(
                "INSERT INTO read VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET upto = excluded.upto",
                {found.source: found.read for found in batch}.items(),
            )
            return max(0, cursor.rowcount)

    def next(self, wanted: Wanted, reviewer: str, after: int | None = None, *, back: bool = False) -> Item | None:
        """The newest record that is wanted, or the next one after another, or before it; None if there is none."""
        where, values = wanted.where(reviewer)
        order = "ASC" if back else "DESC"
        if after is not None:
            sign = ">" if back else "<"
            where = f"{where} AND (time, id) {sign} (SELECT time, id FROM records WHERE id = :after)"  # noqa: S608
        query = f"SELECT * FROM records WHERE {where} ORDER BY time {order}, id {order} LIMIT 1"  # noqa: S608  our own
        with self._using() as connection:
            row = connection.execute(query, {**values, "after": after}).fetchone()
        return None if row is None else self._item(row, reviewer)

    def item(self, record: int, reviewer: str) -> Item | None:
        """A record by its number in the index."""
        with self._using() as connection:
            row = connection.execute("SELECT * FROM records WHERE id = ?", (record,)).fetchone()
        return None if row is None else self._item(row, reviewer)

    def left(self, wanted: Wanted, reviewer: str) -> int:
        """How many records are wanted."""
        where, values = wanted.where(reviewer)
        with self._using() as connection:
            count = connection.execute(f"SELECT count(*) FROM records WHERE {where}", values).fetchone()[0]  # noqa: S608
        return int(count)

    def _item(self, row: sqlite3.Row, reviewer: str) -> Item:
        with self._using() as connection:
            labels = connection.execute(
                "SELECT reviewer, label, note, at FROM labels WHERE record_id = ? ORDER BY at", (row["record_id"],)
            ).fetchall()
        mine = next((dict(each) for each in labels if each["reviewer"] == reviewer), None)
        others = [] if mine is None else [dict(each) for each in labels if each["reviewer"] != reviewer]
        return Item(row["id"], self._source.at(row["place"], row["record_id"]), bool(row["flagged"]), mine, others)

    # labels ----------------------------------------------------------------------------------------------------

    def label(self, record: int, reviewer: str, label: Label, note: str) -> None:
        """Say what a record is. Raises KeyError if there is none of this number."""
        item = self.item(record, reviewer)
        if item is None:
            raise KeyError(record)
        with self._using() as connection:
            record_id = connection.execute("SELECT record_id FROM records WHERE id = ?", (record,)).fetchone()[0]
            old = connection.execute(
                "SELECT * FROM labels WHERE record_id = ? AND reviewer = ?", (record_id, reviewer)
            ).fetchone()
            now = datetime.now(UTC).isoformat()
            kept = orjson.dumps(None if item.record is None else dict(item.record)).decode()
            before = None if old is None else orjson.dumps({name: old[name] for name in SAID}).decode()
            connection.execute(
                "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", (record_id, reviewer, label, note, now, kept)
            )
            connection.execute(
                "INSERT INTO history (reviewer, record_id, at, label, note, before) VALUES (?, ?, ?, ?, ?, ?)",
                (reviewer, record_id, now, label, note, before),
            )

    def undo(self, reviewer: str) -> int | None:
        """Take this reviewer's last label back; the number of its record, None if there is nothing to take back."""
        with self._using() as connection:
            last = connection.execute(
                "SELECT * FROM history WHERE reviewer = ? AND undone = 0 ORDER BY id DESC LIMIT 1", (reviewer,)
            ).fetchone()
            if last is None:
                return None
            connection.execute("UPDATE history SET undone = 1 WHERE id = ?", (last["id"],))
            if last["before"] is None:
                connection.execute(
                    "DELETE FROM labels WHERE record_id = ? AND reviewer = ?", (last["record_id"], reviewer)
                )
            else:
                old, key = orjson.loads(last["before"]), (last["record_id"], reviewer)
                connection.execute(
                    "UPDATE labels SET label = ?, note = ?, at = ? WHERE record_id = ? AND reviewer = ?",
                    (*(old[name] for name in SAID), *key),
                )
            row = connection.execute("SELECT id FROM records WHERE record_id = ?", (last["record_id"],)).fetchone()
            return None if row is None else int(row["id"])

    def labels(self) -> list[dict[str, Any]]:
        """All labels that hold, each with its record, in the order in which they were given."""
        with self._using() as connection:
            rows = connection.execute("SELECT * FROM labels ORDER BY at").fetchall()
        return [{**dict(row), "record": orjson.loads(row["record"])} for row in rows]

    def agreement(self) -> tuple[int, int]:
        """How many records two reviewers have labelled, or more, and on how many of them all say the same."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT count(*), coalesce(sum(same), 0) FROM (SELECT min(label) = max(label) AS same FROM labels "
                "GROUP BY record_id HAVING count(*) > 1)"
            ).fetchone()
        return int(row[0]), int(row[1])

    # the file --------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The file, for one transaction."""
        with self._lock:
            if self._connection is None:
                self._connection = sqlite3.connect(self._path, check_same_thread=False)
                self._connection.row_factory = sqlite3.Row
                self._connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + SCHEMA)
            with self._connection:
                yield self._connection

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _row(found: Found) -> tuple[object, ...] | None:
    """What the index keeps of a record; None of one that was not judged, or that no server of ours has written."""
    record = found.record
    decision, time, record_id = record.get("decision"), record["time"], record.get("record_id")
    written = time.isoformat() if isinstance(time, datetime) else time
    if not isinstance(decision, str) or not isinstance(record_id, str) or not isinstance(written, str):
        return None
    flagged = decision != "pass" or record.get("answer_decision") not in (None, "pass")
    sample = not flagged and zlib.crc32(record_id.encode()) % SAMPLE == 0
    score, categories = record.get("score"), record.get("categories")
    return (
        record_id, found.place, written, _text(record.get("key")), _text(record.get("policy")), decision, flagged,
        sample, score if isinstance(score, float) else None, categories if _is_list(categories) else None,
    )  # fmt: skip


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_list(written: object) -> bool:
    """Whether this is a list in JSON: SQLite ends a query over one that is not."""
    try:
        return isinstance(written, str) and isinstance(orjson.loads(written), list)
    except orjson.JSONDecodeError:
        return False
