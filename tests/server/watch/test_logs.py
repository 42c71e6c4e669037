"""What the log says, and what can never be in it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.watch.limited import STRANGERS, LimitedLines
from server.watch.logs import JsonFormatter, TextFormatter, adopt_libraries, configure, request_id
from tests.server.scripted import ScriptedRunner, application, body, chat, client_of

SECRET = "the secret of the prompt"


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)
    logging.getLogger("server.access").setLevel(logging.NOTSET)


def record(message: str, *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.WARNING, __file__, 1, message, args, more.pop("exc_info", None))
    vars(made).update(more)
    return made


def failure() -> Any:
    try:
        try:
            dict[str, int]()[SECRET]
        except KeyError as error:
            raise ValueError(f"cannot read {SECRET}") from error
    except ValueError:
        return sys.exc_info()


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_makes_a_second_line_or_a_field(text: str) -> None:
    line = JsonFormatter().format(record("%s", text))
    assert len(line.splitlines()) == 1 or not re.search(r"[\n\r]", line)
    assert json.loads(line).keys() == {"time", "level", "logger", "message"}
    shown = TextFormatter().format(record("%s", text))
    assert len(shown.splitlines()) == 1
    assert shown.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown)


def test_an_exception_is_told_without_its_words() -> None:
    line = JsonFormatter().format(record("failed", exc_info=failure()))
    frames = json.loads(line)["exception"]
    assert [frame for frame in frames if ":" not in frame] == ["ValueError", "KeyError"]
    assert any(re.fullmatch(r"watch/test_logs.py:\d+ failure", frame) for frame in frames)
    shown = TextFormatter().format(record("failed", exc_info=failure()))
    assert "\n    ValueError\n    watch/test_logs.py:" in shown
    assert SECRET not in line + shown


def test_asyncio_tells_its_first_line_alone() -> None:
    made = record(f"Task exception was never retrieved\nfuture: <Task exception=KeyError('{SECRET}')>")
    made.name = "asyncio"
    assert SECRET not in JsonFormatter().format(made)


async def test_every_task_of_a_request_logs_with_its_id() -> None:
    formatter = JsonFormatter()

    async def inner() -> Any:
        await asyncio.sleep(0)
        return json.loads(formatter.format(record("x"))).get("request_id")

    async def outer(name: str) -> Any:
        with request_id(name, name):
            return await asyncio.create_task(inner())

    assert await asyncio.gather(*(outer(name) for name in "abc")) == ["a", "b", "c"]
    assert await inner() is None


def test_what_strangers_cause_is_limited() -> None:
    """Malformed HTTP needs no key, and is a line each."""
    configure("text", access=False)
    assert all(any(isinstance(f, LimitedLines) for f in handler.filters) for handler in logging.getLogger().handlers)
    assert "uvicorn.error" in STRANGERS


def test_libraries_lose_their_own_handlers() -> None:
    logger = logging.getLogger("somebodys.library")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    adopt_libraries()
    assert not logger.handlers
    assert logger.propagate


@pytest.mark.parametrize("form", ["json", "text"])
async def test_the_access_log_has_a_line_for_each_request_and_nothing_that_was_sent(
    form: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(form, access=True)
    forged = '", "level": "forged"}\n{"level": "forged"}\nWARNING forged: x'
    async with client_of(application(ScriptedRunner())) as client:
        await chat(client, SECRET)
        await client.post(
            "/v1/chat/completions", json=body(SECRET), headers={"x-request-id": "gw-1", "user-agent": SECRET}
        )
        await client.post(
            "/v1/chat/completions", json=body(SECRET), headers={"x-request-id": forged.replace("\n", " ")}
        )
        await client.get(f"/{SECRET}%0a{{forged}}?api_key={SECRET}")
        await client.get(f"/v1/models/{SECRET}", headers={"authorization": f"Bearer {SECRET}"})
        await client.post("/v1/chat/completions", content=SECRET)
    lines = [line for line in capfd.readouterr().err.splitlines() if "server.access" in line]
    assert len(lines) == 6
    assert not any(SECRET in line or "secret" in line or "forged" in line for line in lines)
    if form == "text":
        assert re.search(r" INFO server\.access \[gw-1 [0-9a-f]{32}\]: POST /v1/chat/completions 200 ", lines[1])
        assert re.search(r" INFO server\.access \[req-[0-9a-f]{32}\]: ", lines[0])
        return
    found = [json.loads(line) for line in lines]
    assert [each["status"] for each in found] == [200, 200, 200, 404, 404, 415]
    assert [each.get("route") for each in found[2:5]] == ["/v1/chat/completions", None, "/v1/models/{model:path}"]
    assert found[1]["request_id"] == "gw-1"
    assert found[2]["request_id"] == f"req-{found[2]['record_id']}"
    assert found[0]["client"] == "anonymous"
    assert found[4]["reason"] == "model_not_found"
    assert {"time", "level", "logger", "message", "request_id", "method", "seconds"} <= found[0].keys()


async def test_an_exception_nobody_handled_is_one_line_with_the_request(capfd: pytest.CaptureFixture[str]) -> None:
    configure("json", access=False)
    runner = ScriptedRunner()
    runner.inputs.fault = RuntimeError(SECRET)
    async with client_of(application(runner)) as client:
        answer = await client.post("/v1/chat/completions", json=body("x"), headers={"x-request-id": "gw-2"})
    assert answer.status_code == 500
    lines = [line for line in capfd.readouterr().err.splitlines() if "server.app" in line]
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["message"], line["request_id"]) == ("POST /v1/chat/completions failed", "gw-2")
    assert line["exception"][0] == "RuntimeError"
    assert SECRET not in lines[0]
