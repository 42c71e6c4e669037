"""A request that takes too long: while it is fetched, prepared, queued or generated, it ends when it must."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from starlette.requests import Request as HttpRequest

from server.answer.deadline import Deadline
from tests.server.scripted import (
    Connection,
    Script,
    ScriptedRunner,
    application,
    body,
    chat,
    client_of,
    content_of,
    error_of,
    events_of,
    metric,
    serving,
)

SOON = 0.05


def deadline(*prefer: str, seconds: float = 600) -> float:
    """The limit in seconds of a request with these `Prefer` headers."""
    headers = [(b"prefer", value.encode("latin-1")) for value in prefer]
    return Deadline.of(HttpRequest({"type": "http", "headers": headers}), 0.0, seconds).seconds


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ([], 600), (["wait=10"], 10), (["Wait = 10"], 10), (['wait="10"'], 10), (["respond-async, wait=10"], 10),
        (["return=minimal; foo, wait=10;bar"], 10), (["wait=20", "wait=10"], 10), (["wait=700"], 600), (["wait=0"], 0),
        (["wait"], 600), (["wait="], 600), (["wait=-1"], 600), (["wait=1.5"], 600), (["wait=1e2"], 600),
        (["wait=\xb2"], 600), (["wait=" + "9" * 5000], 600), (["xwait=1"], 600), (["x=1;wait=2"], 600),
        ([",,;;=="], 600),
    ],
)  # fmt: skip
def test_the_sooner_of_the_servers_limit_and_the_clients_wish(prefer: list[str], expected: float) -> None:
    assert deadline(*prefer) == expected


async def test_a_generation_that_takes_too_long_is_ended_and_says_so() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("ab", finish=None))
    async with serving(runner, request_seconds=SOON) as client:
        response = await chat(client)
        assert error_of(response, 503)["code"] == "deadline_exceeded"
        assert response.headers["x-should-retry"] == "false"  # the official clients retry a 503 otherwise
        *chunks, last = events_of((await chat(client, stream=True)).text)
        assert content_of(chunks) == "ab"
        assert last["error"]["code"] == "deadline_exceeded"
        assert "0.05 seconds" in last["error"]["message"]
        assert runner.aborted == [request.id for request in runner.requests]
        assert await metric(client, "autosteer_request_success_total", finished_reason="timeout") == 2


async def test_a_request_that_waits_too_long_is_ended_by_its_own_wish() -> None:
    runner = ScriptedRunner(gate=asyncio.Event())
    async with serving(runner) as client:
        response = await client.post("/v1/chat/completions", json=body(), headers={"prefer": "wait=0"})
        assert error_of(response, 503)["code"] == "deadline_exceeded"
        streamed = await client.post("/v1/chat/completions", json=body(stream=True), headers={"prefer": "wait=0"})
        assert error_of(streamed, 503)["code"] == "deadline_exceeded"
        assert await metric(client, "autosteer_num_requests_waiting") == 0


async def test_a_request_whose_prompt_takes_too_long_never_reaches_the_engine() -> None:
    runner = ScriptedRunner()
    async with serving(runner, request_seconds=SOON) as client:
        runner.inputs.gate.clear()
        assert error_of(await chat(client), 503)["code"] == "deadline_exceeded"
        runner.inputs.gate.set()
        assert await metric(client, "autosteer_admission_rejections_total", reason="deadline_exceeded") == 1
    assert runner.requests == []


async def test_an_answer_in_time_is_not_disturbed() -> None:
    async with serving(ScriptedRunner(), request_seconds=30) as client:
        for stream in (False, True):
            assert (await chat(client, stream=stream)).status_code == 200
        assert await metric(client, "autosteer_request_success_total", finished_reason="stop") == 2


# every request has one outcome -------------------------------------------------------------------------------------


async def test_what_never_reaches_the_engine_is_counted_too() -> None:
    runner = ScriptedRunner()
    app = application(runner)
    async with client_of(app) as client:
        await Connection(app, None).leave()
        runner.inputs.fault = RuntimeError("unexpected")
        assert error_of(await chat(client), 500)["code"] == "internal_error"
        runner.inputs.fault = None
        runner.inputs.gate.clear()
        connection = Connection(app, orjson.dumps(body()))
        await asyncio.to_thread(runner.inputs.entered.wait)
        await connection.leave()
        runner.inputs.gate.set()
        for reason, count in (("client_gone", 2), ("internal_error", 1)):
            assert await metric(client, "autosteer_admission_rejections_total", reason=reason) == count
