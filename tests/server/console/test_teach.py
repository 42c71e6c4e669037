"""Teach over HTTP: labels as files, the next bundle beside the acting one, and what it would have changed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.demo import GUARD
from server.record.audit.record import AuditRecord, Outcome
from steering.held_out import HeldOut, HeldOutRow, Judged, save_held_out
from steering.manifest import load_manifest
from tests.server.api.test_openapi import answer_schema
from tests.server.console.test_console import CONSOLE_KEY, KEYS, token_of, visiting, with_a_bundle
from tests.server.console.test_review import logged
from tests.server.review.test_store import write
from tests.server.scripted import error_of

TEXTS = ("held 0", "how do i kill a process")  # the first is held out
SHADOW = {"name": "next"}


def flagged(number: int, text: str) -> AuditRecord:
    """A request of now that the acting guard flagged and its shadow did not."""
    asked = orjson.dumps({"messages": [{"role": "user", "content": text}]}).decode()
    return AuditRecord(
        time=datetime.now(UTC), request_id=f"req-{number}", route="POST /v1/x", outcome=Outcome.COMPLETED, key="shop",
        decision="steered", score=0.9, shadow="next", shadow_decision="pass", shadow_score=0.1, content=asked,
        record_id=f"{number:032x}",
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """An audit log of two flagged requests, and a shadow that was made with labels."""
    write(tmp_path / "audit.log", *(flagged(number, text) for number, text in enumerate(TEXTS)))
    bundle = tmp_path / "next"
    shutil.copytree(GUARD, bundle)
    found = load_manifest(bundle)
    row = HeldOutRow(id=f"{0:032x}", harmful=False, old=0.9, new=0.1)
    old, new = Judged(guard="old", threshold=0.5), Judged(guard=found.id, threshold=found.threshold)
    save_held_out(bundle, HeldOut(old=old, new=new, rows=[row]))
    return {**logged(tmp_path), "shadow": {**SHADOW, "guard": str(bundle)}}


async def test_labels_become_files_and_the_next_bundle_stands_beside_the_old_one(settings: dict[str, Any]) -> None:
    async with visiting(runner=with_a_bundle(), **settings) as client:
        token = token_of(await client.get("/console"))
        assert (await client.get("/admin/review/summary")).json()["left"] == len(TEXTS)
        for _ in TEXTS:
            item = (await client.get("/admin/review/next")).json()["item"]
            said = {"id": item["id"], "label": "wrongly flagged", "note": ""}
            assert (await client.post("/console/review/label", json=said, headers=token)).status_code == 200
        found = (await client.get("/admin/teach")).json()
        rows = (await client.get("/admin/labels/labels.jsonl")).text.splitlines()
        hard = (await client.get("/admin/labels/hard-negatives.jsonl")).text
        error_of(await client.get("/admin/labels/other.jsonl"), 404)
        page = await client.get("/console/teach")
    answer_schema("/admin/teach", 200, "application/json", "get").validate(found)
    assert found["labels"] == {"labels": {"wrongly flagged": 2}, "fit": 1, "held_out": 1, "left_out": {}}
    shadow = found["shadow"]
    assert (shadow["problem"], shadow["guard"]) == (None, load_manifest(GUARD).id)
    sides = [
        (side["harmless"], side["false_alarms"]) for side in (shadow["compared"]["old"], shadow["compared"]["new"])
    ]
    assert sides == [(1, 1), (1, 0)]
    assert [(flip["text"], flip["flagged"]) for flip in shadow["compared"]["flips"]] == [(TEXTS[0], False)]
    assert found["changes"] == [{"flagged": True, "by_shadow": False, "count": 2, "labels": {"wrongly flagged": 2}}]
    assert {orjson.loads(row)["text"]: orjson.loads(row).get("split") for row in rows} == {
        TEXTS[0]: "test", TEXTS[1]: None
    }  # fmt: skip
    assert TEXTS[1] in hard
    assert TEXTS[0] not in hard
    assert "guard: " in page.text


async def test_a_shadow_that_cannot_be_read_is_named(settings: dict[str, Any]) -> None:
    (Path(settings["shadow"]["guard"]) / "guard.json").unlink()
    async with visiting(runner=with_a_bundle(), **settings) as client:
        shadow = (await client.get("/admin/teach")).json()["shadow"]
    assert "guard.json" in shadow["problem"]
    assert shadow["compared"] is None


async def test_without_a_log_or_a_shadow_the_page_says_what_is_lacking(tmp_path: Path) -> None:
    async with visiting() as client:
        assert "audit:" in (await client.get("/console/teach")).text
        assert error_of(await client.get("/admin/teach"), 404)["code"] == "no_reviews"
    async with visiting(**logged(tmp_path, content=False)) as client:
        page = (await client.get("/console/teach")).text
        found = (await client.get("/admin/teach")).json()
    assert "Nothing is tried now" in page
    assert "audit.content: true" in page
    assert (found["shadow"], found["changes"], found["labels"]["labels"]) == (None, [], {})


async def test_it_takes_a_key_of_the_console(settings: dict[str, Any]) -> None:
    async with visiting("http://console.example", **KEYS, **settings) as client:
        for path in ("/console/teach", "/admin/teach", "/admin/labels/labels.jsonl"):
            for headers, status in (
                ({}, 401),
                ({"authorization": "Bearer sk-autosteer-api"}, 403),
                ({"authorization": f"Bearer {CONSOLE_KEY}", "origin": "https://evil.example"}, 403),
                ({"authorization": f"Bearer {CONSOLE_KEY}"}, 200),
            ):
                assert (await client.get(path, headers=headers)).status_code == status, (path, headers)
