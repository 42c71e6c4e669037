"""Reviews: an index of audit records, and what reviewers said of them.

The index is filled from the audit log and may be thrown away; labels are kept with the record that they are of. Each
label is on the disk before it is told to be there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from server.review.sources import Found, Record, Source
from server.review.tables import Tables, Transaction, one
from server.review.wanted import Wanted
from steering.labels import Label

BATCH = 2_000  # records of one transaction
SAMPLE = 50  # of records that were not flagged, one in so many is in the sample
SAID = ("label", "note", "at")  # what changes of a label; the record that it is of is kept once
TAKE = (
    "INSERT INTO records (record_id, place, time, key, policy, decision, flagged, sample, score, categories, shadow, "
    "shadow_flagged, changed) VALUES (:record_id, :place, :time, :key, :policy, :decision, :flagged, :sample, :score, "
    ":categories, :shadow, :shadow_flagged, :changed) ON CONFLICT DO NOTHING"
)
GIVE = (
    "INSERT INTO labels (record_id, reviewer, label, note, at, record) VALUES (:record_id, :reviewer, :label, :note, "
    ":at, :record) ON CONFLICT (record_id, reviewer) DO UPDATE SET label = excluded.label, note = excluded.note, "
    "at = excluded.at, record = excluded.record"
)


class Item(NamedTuple):
    """One record as it is reviewed; `mine` is this reviewer's label, `others` what others said, told once `mine` is."""

    id: int
    record: Record | None  # None: the audit log has it no more
    flagged: bool
    mine: Mapping[str, Any] | None
    others: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """How many prompts were judged so by the acting guard and by its shadow, and how many of each label there are."""

    flagged: bool
    by_shadow: bool
    count: int
    labels: Mapping[str, int]


class ReviewStore:
    """The reviews of one audit log. Any thread may use it, one at a time. Raises SinkError."""

    def __init__(self, tables: Tables, source: Source) -> None:
        self._tables = tables
        self._source = source

    # the index -------------------------------------------------------------------------------------------------

    def fill(self) -> int:
        """Take in what has come to the audit log; tells how many records. Others may use the store in between."""
        with self._tables.transaction() as now:
            read = {row["source"]: row["upto"] for row in now.rows("SELECT source, upto FROM read")}
        taken, batch = 0, list[Found]()
        for found in self._source.new(read):
            batch.append(found)
            if len(batch) == BATCH:
                taken += self._take(batch)
                batch.clear()
        return taken + (self._take(batch) if batch else 0)

    def _take(self, batch: Sequence[Found]) -> int:
        rows = [row for found in batch if (row := _row(found)) is not None]
        read = {found.source: found.read for found in batch}
        with self._tables.transaction() as now:
            taken = now.run(TAKE, *rows)
            now.run(
                "INSERT INTO read VALUES (:source, :upto) ON CONFLICT (source) DO UPDATE SET upto = excluded.upto",
                *({"source": source, "upto": upto} for source, upto in read.items()),
            )
        return taken

    def next(self, wanted: Wanted, reviewer: str, after: int | None = None, *, back: bool = False) -> Item | None:
        """The newest record that is wanted, or the next one after another, or before it; None if there is none."""
        return next(iter(self.some(wanted, reviewer, 1, after, back=back)), None)

    def some(
        self, wanted: Wanted, reviewer: str, most: int, after: int | None = None, *, back: bool = False
    ) -> list[Item]:
        """The first records that are wanted, at most so many."""
        where, values = wanted.where(reviewer)
        order = "ASC" if back else "DESC"
        if after is not None:
            sign = ">" if back else "<"
            where = f"{where} AND (time, id) {sign} (SELECT time, id FROM records WHERE id = :after)"  # noqa: S608
        query = f"SELECT * FROM records WHERE {where} ORDER BY time {order}, id {order} LIMIT {most:d}"  # noqa: S608
        with self._tables.transaction() as now:
            rows = now.rows(query, {**values, "after": after})
        return [self._item(row, reviewer) for row in rows]

    def item(self, record: int, reviewer: str) -> Item | None:
        """A record by its number in the index."""
        with self._tables.transaction() as now:
            row = one(now, "SELECT * FROM records WHERE id = :id", {"id": record})
        return None if row is None else self._item(row, reviewer)

    def left(self, wanted: Wanted, reviewer: str) -> int:
        """How many records are wanted."""
        where, values = wanted.where(reviewer)
        with self._tables.transaction() as now:
            (row,) = now.rows(f"SELECT count(*) AS count FROM records WHERE {where}", values)  # noqa: S608
        return int(row["count"])

    def _item(self, row: Mapping[str, Any], reviewer: str) -> Item:
        with self._tables.transaction() as now:
            labels = now.rows(
                "SELECT reviewer, label, note, at FROM labels WHERE record_id = :record_id ORDER BY at",
                {"record_id": row["record_id"]},
            )
        mine = next((each for each in labels if each["reviewer"] == reviewer), None)
        others = [] if mine is None else [each for each in labels if each["reviewer"] != reviewer]
        return Item(row["id"], self._source.at(row["place"], row["record_id"]), bool(row["flagged"]), mine, others)

    def changes(self, shadow: str, since: str) -> list[Change]:
        """How a shadow of this name has judged since a time, beside the acting guard."""
        query = """
            SELECT CASE decision WHEN 'pass' THEN 0 ELSE 1 END AS acting, shadow_flagged, label, count(*) AS count
            FROM records LEFT JOIN (
                SELECT record_id, CASE min(label) WHEN max(label) THEN min(label) ELSE 'not agreed' END AS label
                FROM labels GROUP BY record_id
            ) AS said ON said.record_id = records.record_id
            WHERE shadow = :shadow AND time >= :since GROUP BY 1, 2, 3
        """
        with self._tables.transaction() as now:
            rows = now.rows(query, {"shadow": shadow, "since": since})
        found: dict[tuple[bool, bool], dict[str | None, int]] = {}
        for row in rows:
            found.setdefault((bool(row["acting"]), bool(row["shadow_flagged"])), {})[row["label"]] = row["count"]
        return [
            Change(*pair, sum(of.values()), {label: count for label, count in of.items() if label is not None})
            for pair, of in sorted(found.items())
        ]

    # labels ----------------------------------------------------------------------------------------------------

    def label(self, record: int, reviewer: str, label: Label, note: str) -> None:
        """Say what a record is. Raises KeyError if there is none of this number."""
        item = self.item(record, reviewer)
        if item is None:
            raise KeyError(record)
        with self._tables.transaction() as now:
            (row,) = now.rows("SELECT record_id FROM records WHERE id = :id", {"id": record})
            whose = {"record_id": row["record_id"], "reviewer": reviewer}
            old = one(now, "SELECT * FROM labels WHERE record_id = :record_id AND reviewer = :reviewer", whose)
            said = {**whose, "label": label, "note": note, "at": datetime.now(UTC).isoformat()}
            kept = orjson.dumps(None if item.record is None else dict(item.record)).decode()
            now.run(GIVE, {**said, "record": kept})
            now.run(
                "INSERT INTO history (reviewer, record_id, at, label, note, before) "
                "VALUES (:reviewer, :record_id, :at, :label, :note, :before)",
                {**said, "before": None if old is None else orjson.dumps({name: old[name] for name in SAID}).decode()},
            )

    def undo(self, reviewer: str) -> int | None:
        """Take this reviewer's last label back; the number of its record, None if there is nothing to take back."""
        with self._tables.transaction() as now:
            last = one(
                now,
                "SELECT * FROM history WHERE reviewer = :reviewer AND undone = 0 ORDER BY id DESC LIMIT 1",
                {"reviewer": reviewer},
            )
            if last is None:
                return None
            now.run("UPDATE history SET undone = 1 WHERE id = :id", last)
            if last["before"] is None:
                now.run("DELETE FROM labels WHERE record_id = :record_id AND reviewer = :reviewer", last)
            else:
                now.run(
                    "UPDATE labels SET label = :label, note = :note, at = :at "
                    "WHERE record_id = :record_id AND reviewer = :reviewer",
                    {**last, **orjson.loads(last["before"])},
                )
            return _number_of(now, last["record_id"])

    def labels(self) -> list[dict[str, Any]]:
        """All labels that hold, each with its record, in the order in which they were given."""
        with self._tables.transaction() as now:
            rows = now.rows("SELECT * FROM labels ORDER BY at")
        return [{**row, "record": orjson.loads(row["record"])} for row in rows]

    def agreement(self) -> tuple[int, int]:
        """How many records two reviewers have labelled, or more, and on how many of them all say the same."""
        with self._tables.transaction() as now:
            (row,) = now.rows(
                "SELECT count(*) AS several, coalesce(sum(same), 0) AS same FROM (SELECT CASE min(label) "
                "WHEN max(label) THEN 1 ELSE 0 END AS same FROM labels GROUP BY record_id HAVING count(*) > 1) AS said"
            )
        return int(row["several"]), int(row["same"])

    def close(self) -> None:
        """Let go of the tables."""
        self._tables.close()


def _number_of(now: Transaction, record_id: str) -> int | None:
    row = one(now, "SELECT id FROM records WHERE record_id = :record_id", {"record_id": record_id})
    return None if row is None else int(row["id"])


def _row(found: Found) -> dict[str, object] | None:
    """What the index keeps of a record; None of one that was not judged, or that no server of ours has written."""
    record = found.record
    decision, time, record_id = record.get("decision"), record["time"], record.get("record_id")
    written = time.isoformat() if isinstance(time, datetime) else time
    if not isinstance(decision, str) or not isinstance(record_id, str) or not isinstance(written, str):
        return None
    flagged = decision != "pass" or record.get("answer_decision") not in (None, "pass")
    by_shadow = None if (said := _text(record.get("shadow_decision"))) is None else said != "pass"
    score = record.get("score")
    return {
        **{name: _text(record.get(name)) for name in ("key", "policy", "categories", "shadow")},
        "record_id": record_id,
        "place": found.place,
        "time": written,
        "decision": decision,
        "flagged": int(flagged),
        "sample": int(not flagged and zlib.crc32(record_id.encode()) % SAMPLE == 0),
        "score": score if isinstance(score, float) else None,
        "shadow_flagged": None if by_shadow is None else int(by_shadow),
        "changed": int(by_shadow is not None and by_shadow != (decision != "pass")),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
