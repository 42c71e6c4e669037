"""Review over HTTP: the queue of what this server has flagged, what is kept of it, and who may label."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from server.access.keys import hash_key
from server.app import create_app
from server.record.audit.sinks import make_sink
from server.settings.schema import Settings
from steering.policy import Verdict
from tests.server.api.test_openapi import answer_schema
from tests.server.console.test_console import HERE, signed_in, token_of, visiting
from tests.server.fakes import as_any
from tests.server.scripted import MODEL, Script, ScriptedRunner, body, data_url, error_of, png
from tests.waiting import WAIT_SECONDS

STRANGE: dict[str, dict[str, Any]] = {
    "not JSON": {"categories": "[", "content": "["},
    "no list": {"categories": "3", "content": "[3]"},
    "no text": {"categories": ["a"], "content": 3, "score": "high", "policy": [], "key": {}},
    "nothing": {"categories": None, "content": None, "score": None},
}
KEYS = ["sk-autosteer-ada", "sk-autosteer-bob"]


def answer(text: str) -> Script:
    return Script.saying("I can't.", verdict=Verdict.STEERED if "bad" in text else Verdict.PASS, score=0.75)


def logged(folder: Path, *, content: bool = True) -> dict[str, Any]:
    """Settings with an audit log."""
    return {"audit": {"url": f"file://{folder}/audit.log", "content": content}}


@asynccontextmanager
async def reviewing(at: str = HERE, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A browser's side of a server that writes its audit log."""
    made = Settings(**settings)
    assert made.audit is not None
    app = create_app(made, as_any(ScriptedRunner(answer=answer)), name=MODEL, sink=make_sink(made.audit))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=at) as client,
    ):
        yield client


async def left(client: httpx.AsyncClient, count: int) -> dict[str, int]:
    """Wait until so many are to be reviewed: a thread writes the audit log. The summary of it."""
    summary: dict[str, int] = {"left": 0}
    async with asyncio.timeout(WAIT_SECONDS):
        while summary["left"] < count:
            summary = (await client.get("/admin/review/summary")).json()
    return summary


async def test_what_was_flagged_is_shown_labelled_and_undone(tmp_path: Path) -> None:
    async with reviewing(**logged(tmp_path)) as client:
        token = token_of(await client.get("/console"))
        for text in ("bad one", "fine", "bad <b>two</b>"):
            await client.post("/v1/chat/completions", json=body(text, data_url(png())))
        summary = await left(client, 2)
        item = (await client.get("/admin/review/next")).json()["item"]
        assert item["messages"] == [{"role": "user", "text": "bad <b>two</b>", "pictures": 1}]
        assert (item["answers"], item["facts"]["score"], item["mine"]) == (["I can't."], 0.75, None)
        said = {"id": item["id"], "label": "wrongly flagged", "note": "<i>harmless</i>"}
        error_of(await client.post("/console/review/label", json=said), 403)
        assert (await client.post("/console/review/label", json=said, headers=token)).status_code == 200
        following = (await client.get("/admin/review/next", params={"after": item["id"]})).json()["item"]
        assert following["messages"][0]["text"] == "bad one"
        undone = (await client.post("/console/review/undo", json={}, headers=token)).json()["item"]
        assert (undone["id"], undone["mine"]) == (item["id"], None)
        for path, value in (("next", {"item": item}), ("summary", summary)):
            answer_schema(f"/admin/review/{path}", 200, "application/json", "get").validate(value)


async def test_two_keys_are_two_reviewers(tmp_path: Path) -> None:
    keys = [{"name": key[-3:], "hash": hash_key(key), "scope": "console"} for key in KEYS]
    async with reviewing("http://console.example", keys=keys, **logged(tmp_path)) as client:
        for key in KEYS:
            token = await signed_in(client, key)
            asked = await client.post("/console/chat", json=body("bad"), headers=token)
            assert asked.status_code == 200, asked.text
            await left(client, 1)
            item = (await client.get("/admin/review/next", params={"back": "true"})).json()["item"]
            assert item["others"] == []
            said = {"id": item["id"], "label": "rightly flagged", "note": ""}
            await client.post("/console/review/label", json=said, headers=token)
        assert (await client.get("/admin/review/summary")).json()["both"] == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [({"which": "none"}, "which"), ({"after": "x"}, "after"), ({"back": "1"}, "back"), ({"a": "b"}, "a")],
)
async def test_what_is_asked_wrongly_is_named(tmp_path: Path, query: dict[str, str], param: str) -> None:
    async with visiting(**logged(tmp_path)) as client:
        assert error_of(await client.get("/admin/review/next", params=query), 400)["param"] == param


async def test_a_log_that_is_no_index_is_told_and_lines_of_others_are_left_out(tmp_path: Path) -> None:
    mine = {"time": "2026-01-02T03:04:05+00:00", "key": "a", "record_id": "r", "decision": "blocked"}
    lines = [
        *({**mine, "record_id": each} for each in (None, 7, ["r"])),
        *({**mine, "record_id": name, **more} for name, more in STRANGE.items()),
    ]
    (tmp_path / "audit.log").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in lines))
    async with reviewing(**logged(tmp_path)) as client:
        query = {"category": "weapons", "least": "0.1"}
        assert (await client.get("/admin/review/summary", params=query)).json()["left"] == 0
        assert (await client.get("/admin/review/summary")).json()["left"] == len(STRANGE)
        item = (await client.get("/admin/review/next")).json()["item"]
        while item is not None:
            assert item["messages"] is None
            item = (await client.get("/admin/review/next", params={"after": item["id"]})).json()["item"]
    for part in ("", "-wal", "-shm"):
        (tmp_path / f"audit.log.reviews.db{part}").write_bytes(b"none" * 4096)
    async with reviewing(**logged(tmp_path)) as client:
        assert error_of(await client.get("/admin/review/summary"), 500)["code"] == "audit_unreadable"


async def test_without_a_log_in_a_file_the_page_says_how_to_have_one(tmp_path: Path) -> None:
    async with visiting() as client:
        assert "audit:" in (await client.get("/console/review")).text
        assert error_of(await client.get("/admin/review/next"), 404)["code"] == "no_reviews"
    async with visiting(**logged(tmp_path, content=False)) as client:
        assert "audit.content: true" in (await client.get("/console/review")).text
