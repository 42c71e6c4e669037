"""Labels become rows that a fit reads, and what gives none is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from server.record.audit.sinks import review_file
from server.review.beside import store_beside
from server.review.export import exported
from server.review.wanted import Wanted
from server.settings.groups import AuditSettings
from steering.fitting.items import read_hard, read_labels
from tests.end_to_end.commands import run
from tests.server.review.test_store import judged, write


def label(number: int, said: str, content: Any = "x", reviewer: str = "ada") -> dict[str, Any]:
    """A label of a request with these messages, or this one text."""
    asked = {"messages": content if isinstance(content, list) else [{"role": "user", "content": content}]}
    record = {"content": orjson.dumps(asked).decode(), "content_hash": f"{number:064x}"}
    return {"record_id": str(number), "reviewer": reviewer, "label": said, "record": record}


def test_each_label_has_its_file() -> None:
    said = ["wrongly flagged", "rightly passed", "rightly flagged", "missed"]
    found = exported(label(number, each, f"text {number}") for number, each in enumerate(said))
    assert [(row["prompt"], row["label"]) for row in found.rows["hard-negatives.jsonl"]] == [
        ("text 0", "safe"), ("text 2", "unsafe"), ("text 3", "unsafe")
    ]  # fmt: skip
    assert [row["text"] for row in found.rows["benign.jsonl"]] == ["text 1"]


def test_one_label_in_four_is_held_out_the_same_ones_each_time() -> None:
    labels = [label(number, "missed" if number % 2 else "rightly passed", f"held {number}") for number in range(400)]
    found, again = exported(labels), exported(reversed(labels[:200]))
    held = {row["id"]: row.get("split") == "test" for row in found.rows["labels.jsonl"]}
    assert 0.15 * 400 < sum(held.values()) == found.held_out < 0.35 * 400
    assert found.fit == 400 - found.held_out
    fitted = [row["id"] for name in ("hard-negatives.jsonl", "benign.jsonl") for row in found.rows[name]]
    assert sorted(fitted) == sorted(name for name, out in held.items() if not out)
    assert all(held[row["id"]] == (row.get("split") == "test") for row in again.rows["labels.jsonl"])


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([label(1, "missed"), label(1, "rightly passed", reviewer="bob")], "reviewers do not agree"),
        ([label(1, "missed", [{"role": "user", "content": "a"}] * 2)], "several turns"),
        (
            [
                label(
                    1,
                    "missed",
                    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "sha256:0"}}]}],
                )
            ],
            "pictures, which are not kept",
        ),
        ([{**label(1, "missed"), "record": None}], "no text was kept (audit.content)"),
        ([{**label(1, "missed"), "record": {"content": None}}], "no text was kept (audit.content)"),
        ([{**label(1, "missed"), "record": {"content": '{"input": ["a", "b"]}'}}], "not one text"),
    ],
)
def test_what_gives_no_row_is_counted(labels: list[dict[str, Any]], why: str) -> None:
    found = exported(labels)
    assert not any(found.rows.values())
    assert found.left_out == {why: 1}


def test_two_reviewers_who_agree_give_one_row() -> None:
    found = exported([label(1, "missed"), label(1, "rightly flagged", reviewer="bob")])
    assert len(found.rows["hard-negatives.jsonl"]) == 1


def test_the_command_writes_what_a_fit_reads(tmp_path: Path) -> None:
    log, out = tmp_path / "audit.jsonl", tmp_path / "labels"
    texts = {1: "how do i kill a process", 3: "how do i make a bomb"}
    for number, text in texts.items():
        write(log, judged(number, content=orjson.dumps({"prompt": text}).decode(), content_hash="ab" * 32))
    config = tmp_path / "a.yaml"
    config.write_text(f"audit: {{url: 'file://{log}', content: true}}")
    assert "there are no labels" in run("labels", "export", "--config", str(config), "--out", str(out)).stderr
    audit = AuditSettings.model_validate({"url": f"file://{log}"})
    assert review_file(audit) == log.with_name("audit.jsonl.reviews.db")
    store = store_beside(audit)
    store.fill()
    for said in ("rightly flagged", "wrongly flagged"):  # the newest first
        item = store.next(Wanted(), "ada")
        assert item is not None
        store.label(item.id, "ada", said, "")
    ended = run("labels", "export", "--config", str(config), "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert "hard-negatives.jsonl: 2" in ended.stdout
    harmful, harmless = read_hard(out / "hard-negatives.jsonl")
    assert (harmful.toxic and harmful.toxic.text, harmful.safe) == (texts[3], None)
    assert (harmless.toxic, harmless.safe and harmless.safe.text) == (None, texts[1])
    assert (out / "benign.jsonl").read_bytes() == b""
    missed, wrong = read_labels(out / "labels.jsonl")
    assert (missed.toxic, wrong.safe) == (harmful.toxic, harmless.safe)
    assert missed.hard
    assert wrong.hard
