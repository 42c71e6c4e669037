"""What the audit log is told of every request over HTTP; the engine is scripted, the sink a list."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from server.access.keys import hash_key
from server.app import create_app
from server.record.audit.record import AuditRecord, Outcome, content_hash, content_of
from server.request import EngineFailed, Finish
from server.settings.schema import Settings
from steering.policy import CategoryScore, Verdict
from tests.server.fakes import as_any
from tests.server.records import MemorySink, audit_settings
from tests.server.scripted import (
    CONTEXT,
    IMAGE_TOKENS,
    MODEL,
    REFUSAL,
    Connection,
    Script,
    ScriptedRunner,
    body,
    chat,
    client_of,
    data_url,
    error_of,
    metric,
    png,
)

KEY = "sk-shop"
ACCESS: dict[str, Any] = {
    "keys": [{"name": "shop", "hash": hash_key(KEY), "policy": "strict"}],
    "policies": {"strict": {"threshold": 0.1, "may_loosen": True, "requests_per_minute": 5}},
}
HEADERS = {"authorization": f"Bearer {KEY}"}


def audited(runner: ScriptedRunner, sink: MemorySink, audit: dict[str, Any] | None = None, **options: Any) -> FastAPI:
    settings = Settings(**options, audit=audit_settings(**(audit or {})))
    return create_app(settings, as_any(runner), name=MODEL, sink=sink)


@asynccontextmanager
async def serving(sink: MemorySink, answer: Script | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    runner = ScriptedRunner() if answer is None else ScriptedRunner(answer=lambda _: answer)
    async with client_of(audited(runner, sink, **options)) as client:
        client.headers.update(HEADERS)
        yield client


async def one(
    script: Script | None = None, *urls: str, options: dict[str, Any] | None = None, **request: Any
) -> AuditRecord:
    """The record of one request."""
    sink = MemorySink()
    async with serving(sink, script, **(options or {})) as client:
        await chat(client, "hello", *urls, **request)
    [record] = sink.records
    return record


async def test_the_categories_of_a_flagged_prompt_are_kept() -> None:
    told = [CategoryScore("weapons", 0.75, reached=True), CategoryScore("fraud", 0.25, reached=False)]
    record = await one(Script(verdict=Verdict.BLOCKED, score=0.9, finish=Finish.CONTENT_FILTER, categories=told))
    assert record.categories == '["weapons"]'
    assert record.category_scores == '{"weapons":0.75,"fraud":0.25}'
    record = await one()
    assert (record.categories, record.category_scores) == (None, None)


async def test_requests_of_one_id_are_told_apart() -> None:
    """A client may send the id of another's request: in audit records and in the log each has one of its own too."""
    sink = MemorySink()
    async with serving(sink, **ACCESS) as client:
        for _ in range(2):
            await client.post("/v1/chat/completions", json=body("hello"), headers={"x-request-id": "abc"})
        several = [("x-request-id", "abc"), ("x-request-id", "abd")]
        await client.post("/v1/chat/completions", json=body("hello"), headers=several)
    first, second, third = sink.records
    assert first.request_id == second.request_id == "abc"
    assert len({first.record_id, second.record_id, third.record_id}) == 3
    assert third.request_id == f"req-{third.record_id}"


async def test_an_answer() -> None:
    sink = MemorySink()
    before = datetime.now(UTC)
    async with serving(sink, **ACCESS) as client:
        sent = {**body("hello", data_url(png())), "guard": {"threshold": 0.05, "eps": 2}}
        answer = await client.post("/v1/chat/completions", json=sent, headers={"x-request-id": "abc"})
    [record] = sink.records
    assert before <= record.time <= datetime.now(UTC)
    assert (record.request_id, record.route) == ("abc", "POST /v1/chat/completions")
    assert answer.headers["x-request-id"] == "abc"
    assert (record.outcome, record.status, record.reason, record.finish) == ("completed", 200, None, "stop")
    assert (record.key, record.policy, record.mode, record.threshold, record.eps) == (
        "shop",
        "strict",
        "steer",
        0.05,
        2,
    )
    assert (record.decision, record.score, record.layer, record.modality) == ("pass", 0.25, 3, "image")
    assert (record.prompt_tokens, record.image_tokens) == (5 + IMAGE_TOKENS, IMAGE_TOKENS)
    assert record.completion_tokens == 5
    assert record.total_seconds > 0
    assert record.queue_seconds is not None
    assert (record.content, record.answer) == (None, None)
    assert re.fullmatch("[0-9a-f]{64}", record.content_hash or "")
    assert len(record.record_id) == 32


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_a_refusal(verdict: Verdict, stream: bool) -> None:
    script = Script.saying(REFUSAL, verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    if verdict is Verdict.BLOCKED:
        script = Script(verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    record = await one(script, options={"audit": {"content": True}}, stream=stream)
    assert (record.outcome, record.finish, record.decision, record.score) == (
        "completed", "content_filter", verdict.value, 0.9,
    )  # fmt: skip
    assert record.answer == json.dumps([REFUSAL], separators=(",", ":"))
    assert (record.modality, record.completion_tokens) == ("text", 0 if verdict is Verdict.BLOCKED else len(REFUSAL))


async def test_the_mode_is_the_one_that_the_request_was_judged_by() -> None:
    block = {"model": MODEL, "policy": {"input": {"mode": "block"}}}
    records = [await one(moderation=moderation, guard={"threshold": 0.25}) for moderation in (None, block)]
    assert [(r.policy, r.mode, r.threshold) for r in records] == [
        ("default", "steer", 0.25),
        ("default", "block", 0.25),
    ]


async def test_content_is_kept_only_where_that_is_wished_and_its_hash_can_be_checked() -> None:
    record = await one(None, data_url(png()), options={"audit": {"content": True}}, n=2)
    assert record.content is not None
    assert hashlib.sha256(record.content.encode()).hexdigest() == record.content_hash
    image = "sha256:" + hashlib.sha256(png()).hexdigest()
    parts = [{"image_url": {"url": image}, "type": "image_url"}, {"text": "hello", "type": "text"}]
    assert json.loads(record.content) == {"messages": [{"content": parts, "role": "user"}]}
    assert json.loads(record.answer or "") == ["hello", "hello"]
    assert record.completion_tokens == 10
    plain = await one(None, data_url(png()))
    assert (plain.content, plain.answer, plain.content_hash) == (None, None, record.content_hash)


def test_the_hash_is_over_the_images_bytes_and_of_nothing_but_the_content() -> None:
    def hashed(*urls: str, fetched: dict[str, bytes] | None = None, **fields: Any) -> str:
        return content_hash(content_of(orjson.loads(orjson.dumps(body("x", *urls, **fields))), fetched or {}))

    assert hashed(data_url(png())) == hashed(data_url(png()).replace("data:", "DATA:"), temperature=0)
    assert hashed("https://a/b.png", fetched={"https://a/b.png": png()}) == hashed(data_url(png()))
    different = {hashed(), hashed(data_url(png())), hashed(data_url(png(colour="blue"))), hashed("data:what")}
    assert len(different) == 4
    assert content_of("no object", {}) == b"{}"


BIG = "A" * 1_000_000
NO_IMAGES = {
    "tiff": data_url(b"II*\0" + bytes(1_000_000), "image/tiff"),
    "heic": data_url(bytes(1_000_000), "image/heic"),
    "broken base64": "data:image/png;base64," + BIG + "!",
    "not encoded": "data:image/png," + BIG,
    "no scheme": BIG,
    "not fetched": "https://example.com/" + BIG,
    "not an image": data_url(bytes(1_000_000)),
}


@pytest.mark.parametrize("name", NO_IMAGES)
async def test_an_image_that_is_refused_is_kept_as_a_hash(name: str) -> None:
    record = await one(None, NO_IMAGES[name], options={"audit": {"content": True}})
    assert record.status == 400
    if record.content is not None:  # refused once its images were to be read
        url = json.loads(record.content)["messages"][0]["content"][0]["image_url"]["url"]
        assert re.fullmatch("sha256(-as-sent)?:[0-9a-f]{64}", url)
        assert hashlib.sha256(record.content.encode()).hexdigest() == record.content_hash
    assert len(orjson.dumps(record)) < 2_000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": BIG},
        {"type": "input_audio", "input_audio": {"data": BIG, "format": "wav"}},
        {"type": "file", "file": {"file_data": BIG, "filename": BIG}},
        {"type": "new", "new": {"deep": [{"blob": BIG}]}},
        {"type": "image_url", "image_url": {"url": data_url(png()), "detail": BIG}, "more": BIG},
    ],
)
def test_whatever_is_no_text_is_kept_as_hashes(part: dict[str, Any]) -> None:
    content = content_of({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "words"}]}]}, {})
    assert len(content) < 600
    assert BIG[:300].encode() not in content
    assert b'"words"' in content


async def test_a_prompt_beyond_the_limit_of_characters_is_not_kept_whole() -> None:
    options: dict[str, Any] = {"audit": {"content": True}, "max_prompt_characters": 100}
    assert (await one(None, options=options)).content is not None
    sink = MemorySink()
    async with serving(sink, **options) as client:
        error_of(await chat(client, "x" * 5_000), 400)
    [record] = sink.records
    assert (record.content, len(record.content_hash or "")) == (None, 64)


REFUSED = [
    ({"authorization": "Bearer wrong"}, {}, 401, "invalid_api_key", None),
    (HEADERS, {"model": "other"}, 404, "model_not_found", "shop"),
    (HEADERS, {"temperature": 9}, 400, "invalid_request", "shop"),
    (HEADERS, {"text": "x" * CONTEXT}, 400, "context_length_exceeded", "shop"),
]


@pytest.mark.parametrize(("headers", "fields", "status", "reason", "key"), REFUSED)
async def test_a_request_that_is_refused(
    headers: dict[str, str], fields: dict[str, Any], status: int, reason: str, key: str | None
) -> None:
    sink = MemorySink()
    async with serving(sink, **ACCESS) as client:
        client.headers.update(headers)
        error_of(await chat(client, **fields), status)
    [record] = sink.records
    assert (record.outcome, record.status, record.reason, record.key) == ("rejected", status, reason, key)
    assert (record.finish, record.decision, record.prompt_tokens) == (None, None, None)


async def test_loosening_and_too_many_requests_are_recorded_with_their_reason() -> None:
    sink = MemorySink()
    strict = {**ACCESS, "policies": {"strict": {"requests_per_minute": 1}}}
    async with serving(sink, **strict) as client:
        await chat(client, guard={"mode": "off"})
        await chat(client)
    assert [(r.outcome, r.status, r.reason) for r in sink.records] == [
        ("rejected", 403, "may_not_loosen"),
        ("rejected", 429, "rate_limit_exceeded"),
    ]


async def test_other_routes_of_the_api_are_recorded_and_those_of_operations_are_not() -> None:
    sink = MemorySink()
    async with serving(sink, **ACCESS) as client:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/health", "/ready", "/metrics", "/v1/none", "/none"):
            await client.get(path)
    assert [(r.route, r.status) for r in sink.records] == [
        ("GET /v1/models", 200),
        ("GET /v1/models/{model:path}", 200),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_of_the_engine(stream: bool) -> None:
    record = await one(Script(tokens=[65], finish=Finish.ERROR, error=EngineFailed("gone")), stream=stream)
    assert (record.outcome, record.reason, record.finish) == ("failed", "engine_failed", "error")
    assert record.status == (200 if stream else 503)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(stream: bool) -> None:
    sink = MemorySink()
    runner = ScriptedRunner(answer=lambda _: Script(tokens=b"abc", finish=None))
    app = audited(runner, sink)
    async with app.router.lifespan_context(app):
        connection = Connection(app, orjson.dumps(body(stream=stream)))
        await runner.accepted(1)
        if stream:
            await connection.has_sent(3)
        await connection.leave()
    [record] = sink.records
    assert (record.outcome, record.finish, record.reason) == ("disconnected", "abort", None)
    assert record.status == (200 if stream else 499)


async def test_requests_cut_short_by_the_end_of_the_server_are_recorded() -> None:
    sink = MemorySink()
    runner = ScriptedRunner(answer=lambda _: Script(finish=None))
    app = audited(runner, sink)
    async with client_of(app) as client:
        asked = [asyncio.create_task(chat(client, stream=index % 2 == 0)) for index in range(6)]
        await runner.accepted(6)
    await asyncio.wait(asked)
    assert [(r.outcome, r.reason) for r in sink.records] == [("failed", "shutting_down")] * 6


async def test_every_request_has_one_record() -> None:
    sink = MemorySink()
    async with serving(sink) as client:
        await asyncio.gather(*(chat(client, f"{i}", stream=i % 2 == 0, n=1 + i % 3) for i in range(60)))
        assert await metric(client, "autosteer_audit_sink_up") == 1
    assert len({record.record_id for record in sink.records}) == len({r.request_id for r in sink.records}) == 60
    assert {record.outcome for record in sink.records} == {"completed"}


# a sink that fails -------------------------------------------------------------------------------------------------


async def failing(client: httpx.AsyncClient, sink: MemorySink) -> None:
    sink.fault = OSError(28, "No space left on device")
    assert (await chat(client)).status_code == 200
    async with asyncio.timeout(20):
        while await metric(client, "autosteer_audit_sink_up") == 1:  # noqa: ASYNC110  of another thread
            await asyncio.sleep(0)


async def test_to_refuse_closes_the_server_until_records_are_written_again() -> None:
    sink = MemorySink()
    async with serving(sink, audit={"on_failure": "refuse"}) as client:
        await failing(client, sink)
        refused = await chat(client)
        assert error_of(refused, 503)["code"] == "audit_failed"
        assert "No space left" in refused.json()["error"]["message"]
        assert "audit log" in error_of(await client.get("/ready"), 503)["message"]
        assert (await client.get("/health")).status_code == 200
        assert await metric(client, "autosteer_admission_rejections_total", reason="audit_failed") == 1
        sink.fault = None
        async with asyncio.timeout(20):
            while (await client.get("/ready")).status_code == 503:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (await chat(client)).status_code == 200
    assert [(r.outcome, r.reason) for r in sink.records] == [
        ("completed", None),
        ("rejected", "audit_failed"),
        ("completed", None),
    ]


async def test_to_serve_goes_on_and_counts_what_is_lost() -> None:
    sink = MemorySink()
    async with serving(sink, audit={"on_failure": "serve", "queue": 3}) as client:
        await failing(client, sink)
        for _ in range(5):
            assert (await chat(client)).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert await metric(client, "autosteer_audit_records_total", outcome="dropped") == 3
        assert await metric(client, "autosteer_audit_pending") == 3
        sink.fault = None
    assert len(sink.records) == 3


async def test_strangers_cannot_take_the_places_of_requests_that_were_let_in() -> None:
    sink = MemorySink()
    script = Script(tokens=b"abc", finish=None)
    runner = ScriptedRunner(answer=lambda _: script)
    app = audited(runner, sink, {"on_failure": "refuse", "queue": 8}, **ACCESS)
    async with client_of(app) as client:
        async with asyncio.timeout(20):
            while (await client.get("/ready")).status_code == 503:  # noqa: ASYNC110  of another thread
                await asyncio.sleep(0)
        asked = [
            asyncio.create_task(client.post("/v1/chat/completions", json=body(), headers=HEADERS)) for _ in range(4)
        ]
        await runner.accepted(4)
        sink.fault = OSError("away")
        for _ in range(30):
            error_of(await chat(client), 401)
        for request in list(runner.requests):
            runner.abort(request.id)
        await asyncio.wait(asked)
        sink.fault = None
    outcomes = [record.outcome for record in sink.records]
    assert outcomes.count(Outcome.FAILED) == 4
    assert len(outcomes) <= 8
