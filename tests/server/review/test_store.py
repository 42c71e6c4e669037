"""Reviews beside an audit log: the queue, labels that stay, undo, two reviewers, and what has gone from the log."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from server.record.audit.database import Database
from server.record.audit.record import AuditRecord
from server.review.beside import store_beside
from server.review.sources import Lines
from server.review.store import SAMPLE, Change, Item, ReviewStore
from server.review.tables import SqliteTables
from server.review.wanted import Wanted
from tests.server.records import audit_settings, record

FLAGGED = {"decision": "steered", "score": 0.9, "policy": "strict", "key": "shop"}
PASSED = {"decision": "pass", "score": 0.1, "policy": "default", "key": "desk"}


def judged(number: int, **fields: Any) -> AuditRecord:
    """A record of its minute; every other one is flagged."""
    given = {**(FLAGGED if number % 2 else PASSED), "record_id": f"{number:032x}", **fields}
    made = record(number, **given)
    return record(number, **{**given, "time": made.time + timedelta(minutes=number)})


def write(path: Path, *records: AuditRecord) -> None:
    with path.open("ab") as file:
        file.writelines(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in records)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    write(path, *(judged(number) for number in range(10)), record(10))  # the last one was not judged
    return path


def opened(log: Path) -> ReviewStore:
    store = ReviewStore(SqliteTables(log.with_name("audit.jsonl.reviews.db")), Lines(log))
    store.fill()
    return store


def requests(store: ReviewStore, wanted: Wanted, reviewer: str = "ada") -> list[str]:
    """The queue, in its order."""
    found: list[str] = []
    item = store.next(wanted, reviewer)
    while item is not None:
        assert item.record is not None
        found.append(item.record["request_id"])
        item = store.next(wanted, reviewer, item.id)
    return found


def first(store: ReviewStore, wanted: Wanted | None = None, reviewer: str = "ada") -> Item:
    item = store.next(wanted or Wanted(), reviewer)
    assert item is not None
    return item


def test_the_queue_is_what_was_flagged_newest_first(log: Path) -> None:
    store = opened(log)
    assert requests(store, Wanted()) == [f"req-{number}" for number in (9, 7, 5, 3, 1)]
    assert store.left(Wanted(), "ada") == 5
    middle = store.next(Wanted(), "ada", first(store).id)
    assert middle is not None
    before = store.next(Wanted(), "ada", middle.id, back=True)
    assert before == first(store)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(which="all", policy="default"), (8, 6, 4, 2, 0)),
        (Wanted(which="all", key="shop", since=judged(5).time.isoformat()), (9, 7, 5)),
        (Wanted(which="all", decision="pass", since=judged(7).time.isoformat()), (8,)),
        (Wanted(which="all", least=0.5), (9, 7, 5, 3, 1)),
        (Wanted(most=0.5), ()),
        (Wanted(category="weapons"), ()),
    ],
)
def test_the_queue_is_what_is_wanted_of_it(log: Path, wanted: Wanted, numbers: tuple[int, ...]) -> None:
    assert requests(opened(log), wanted) == [f"req-{number}" for number in numbers]


def test_a_category_and_an_answer_that_was_flagged_are_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, judged(1, categories='["weapons"]'), judged(2, answer_decision="blocked"), judged(4))
    store = opened(path)
    assert requests(store, Wanted()) == ["req-2", "req-1"]
    assert requests(store, Wanted(category="weapons")) == ["req-1"]


def test_the_sample_of_the_rest_is_one_in_so_many(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, *(judged(2 * number) for number in range(2_000)))
    count = opened(path).left(Wanted(which="sample"), "ada")
    assert 0.5 * 2_000 / SAMPLE < count < 2 * 2_000 / SAMPLE


def test_what_comes_later_is_taken_in_also_after_the_file_has_moved_on(log: Path) -> None:
    store = opened(log)
    assert store.fill() == 0
    write(log, judged(11))
    with log.open("ab") as file:
        file.write(orjson.dumps(judged(13))[:50])  # it is being written
    assert store.fill() == 1
    log.replace(log.with_name("audit.jsonl.1"))
    write(log, judged(15))
    assert store.fill() == 1
    assert requests(store, Wanted())[:3] == ["req-15", "req-11", "req-9"]


def test_a_label_is_there_after_a_kill_with_its_record(log: Path) -> None:
    store = opened(log)
    store.label(first(store).id, "ada", "wrongly flagged", "a <b>twin</b>")
    log.unlink()  # its time is over
    again = ReviewStore(SqliteTables(log.with_name("audit.jsonl.reviews.db")), Lines(log))  # the first was never closed
    (kept,) = again.labels()
    assert (kept["label"], kept["note"], kept["reviewer"]) == ("wrongly flagged", "a <b>twin</b>", "ada")
    assert kept["record"]["request_id"] == "req-9"
    assert first(again).record is None


def test_what_is_labelled_leaves_the_queue_and_comes_back_when_that_is_undone(log: Path) -> None:
    store = opened(log)
    item = first(store)
    store.label(item.id, "ada", "rightly flagged", "")
    store.label(item.id, "ada", "wrongly flagged", "on second thoughts")
    assert first(store).id != item.id
    assert first(store, Wanted(labelled=True)).mine == {
        "reviewer": "ada", "label": "wrongly flagged", "note": "on second thoughts", "at": store.labels()[0]["at"]
    }  # fmt: skip
    assert store.undo("bob") is None
    assert store.undo("ada") == item.id
    assert [each["label"] for each in store.labels()] == ["rightly flagged"]
    assert store.undo("ada") == item.id
    assert (store.labels(), store.undo("ada")) == ([], None)
    assert first(store) == item
    with pytest.raises(KeyError):
        store.label(10**6, "ada", "missed", "")


def test_two_reviewers_do_not_see_each_other_until_they_have_said_something(log: Path) -> None:
    store = opened(log)
    item = first(store)
    store.label(item.id, "ada", "rightly flagged", "")
    seen = first(store, reviewer="bob")
    assert (seen.id, seen.others, store.agreement()) == (item.id, [], (0, 0))
    store.label(item.id, "bob", "wrongly flagged", "")
    mine = store.item(item.id, "bob")
    assert mine is not None
    assert [(each["reviewer"], each["label"]) for each in mine.others] == [("ada", "rightly flagged")]
    assert store.agreement() == (1, 0)
    store.label(item.id, "bob", "rightly flagged", "")
    assert store.agreement() == (1, 1)


def test_a_log_in_a_database_is_reviewed_too(database_url: str) -> None:
    database = Database(database_url)
    database.open()
    database.write([judged(number, categories='["weapons"]' if number == 3 else None) for number in (3, 4, 5)])
    store = store_beside(audit_settings(url=database_url))
    assert store.fill() == 3
    database.write([judged(1)])  # it began before the others, and ended after them
    assert store.fill() == 1
    assert requests(store, Wanted()) == ["req-5", "req-3", "req-1"]
    assert requests(store, Wanted(category="weapons")) == ["req-3"]
    assert requests(store, Wanted(which="all", most=0.5, since=judged(2).time.isoformat())) == ["req-4"]
    middle = store.next(Wanted(), "ada", first(store).id)
    assert middle is not None
    assert store.next(Wanted(), "ada", middle.id, back=True) == first(store)
    store.label(first(store).id, "ada", "rightly flagged", "")
    store.label(first(store, Wanted(labelled=True)).id, "ada", "wrongly flagged", "é")
    store.label(first(store, reviewer="bob").id, "bob", "wrongly flagged", "")
    store.close()
    again = store_beside(audit_settings(url=database_url))
    assert again.agreement() == (1, 1)
    assert [each["record"]["request_id"] for each in again.labels()] == ["req-5", "req-5"]
    assert again.undo("ada") is not None
    assert {each["reviewer"]: each["label"] for each in again.labels()} == {
        "ada": "rightly flagged", "bob": "wrongly flagged"
    }  # fmt: skip
    again.close()
    database.close()


def test_what_a_shadow_would_change_is_counted_and_reviewed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    shadowed = [{"shadow": "next", "shadow_decision": said} for said in ("pass", "monitored")]
    write(path, *(judged(number, **shadowed[number // 2 % 2]) for number in range(6)), judged(7))
    store = opened(path)
    changed = Wanted(which="changed", shadow="next")
    assert requests(store, changed) == ["req-5", "req-2", "req-1"]
    store.label(first(store, changed).id, "ada", "wrongly flagged", "")
    assert store.changes("next", judged(0).time.isoformat()) == [
        Change(flagged=False, by_shadow=False, count=2, labels={}),
        Change(flagged=False, by_shadow=True, count=1, labels={}),
        Change(flagged=True, by_shadow=False, count=2, labels={"wrongly flagged": 1}),
        Change(flagged=True, by_shadow=True, count=1, labels={}),
    ]
    assert sum(each.count for each in store.changes("next", judged(4).time.isoformat())) == 2
    assert store.changes("other", judged(0).time.isoformat()) == []


def test_an_index_of_another_version_is_made_anew_and_labels_stay(log: Path) -> None:
    store = opened(log)
    store.label(first(store).id, "ada", "wrongly flagged", "")
    store.close()
    with sqlite3.connect(log.with_name("audit.jsonl.reviews.db")) as file:
        file.execute("UPDATE read SET upto = '0' WHERE source = 'index'")
    file.close()
    again = opened(log)
    assert requests(again, Wanted()) == [f"req-{number}" for number in (7, 5, 3, 1)]
    assert len(again.labels()) == 1
