"""`/openapi.json` says what is so: answers and errors are as it has them, and bodies are taken as it has them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema_rs
import pytest

from server.request import EngineFailed, Finish
from steering.policy import Verdict
from tests.server.scripted import (
    MODEL,
    REFUSAL,
    Script,
    ScriptedRunner,
    application,
    body,
    data_url,
    events_of,
    png,
    serving,
)

CHAT, COMPLETIONS, MODERATIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/moderations", "/tokenize"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
PICTURE = data_url(png())
MODERATED = {"moderation": {"model": MODEL, "policy": {"input": {"mode": "block"}}}}
WANTED = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
FULL = {
    "temperature": 0.5, "top_p": 1, "top_k": -1, "min_p": 0, "seed": -5, "n": 2, "stop": "STOP", "max_tokens": 9,
    "logit_bias": {"5": -100}, "user": "u", "frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 10,
}  # fmt: skip
NAMED: list[dict[str, Any]] = [
    {"role": "developer", "content": "x", "name": "Ada"},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}]},
    {"role": "assistant", "content": None, "refusal": "no"},
    {"role": "user", "content": "y"},
]

CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "y"},
]

GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, body("x", PICTURE)),
    "chat with all that an answer can have": (
        CHAT, body("x", logprobs=True, top_logprobs=20, metadata={"k": "v"}, **FULL, **MODERATED)
    ),
    "chat of scored tokens": (CHAT, body("x", PICTURE, guard={"scores": True})),
    "chat of named messages": (CHAT, {"model": MODEL, "messages": NAMED, "max_completion_tokens": 3}),
    "chat that is refused": (CHAT, body("bad", logprobs=True, **MODERATED)),
    "chat that calls": (
        CHAT,
        body("{}", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], tool_choice="required"),
    ),
    "chat of turns of tools": (CHAT, {"model": MODEL, "messages": CALLED}),
    "chat of a schema": (CHAT, body("{}", response_format=WANTED)),
    "completion": (COMPLETIONS, {"model": MODEL, "prompt": ["x", "y"], "logprobs": 2, **FULL}),
    "completion of ids": (COMPLETIONS, {"model": MODEL, "prompt": [[1], [2]], "echo": True}),
    "message": (
        MESSAGES, {**body("{}"), "max_tokens": 9, "system": "x", "tools": [{"name": "f", "input_schema": {}}],
                   "tool_choice": {"type": "any"}, "stop_sequences": ["x"], "thinking": {"type": "disabled"}},
    ),
    "message that is refused": (MESSAGES, {**body("bad"), "max_tokens": 9}),
    "count": (COUNT, body("x")),
    "moderation": (MODERATIONS, {"input": "x"}),
    "moderation of parts": (
        MODERATIONS,
        {"model": MODEL, "input": [{"type": "text", "text": "x"}, NAMED[1]["content"][0]]},
    ),
    "tokens": (TOKENIZE, {"messages": NAMED, "return_token_strs": True}),
    "tokens of a text": (TOKENIZE, {"prompt": "x"}),
}  # fmt: skip
STREAMS = [name for name, (path, _) in GOOD.items() if path in (CHAT, COMPLETIONS)]


def answers(text: str) -> Script:
    if text == "bad":
        return Script.saying(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER)
    if text == "broken":
        return Script(finish=Finish.ERROR, error=EngineFailed("x"))
    return Script.saying(text)


@cache
def document() -> dict[str, Any]:
    """What every server has at `/openapi.json`; to make it takes longer than most of these tests."""
    return application(ScriptedRunner()).openapi()


def operation(path: str, method: str = "post") -> dict[str, Any]:
    found: dict[str, Any] = document()["paths"][path][method]
    return found


@cache
def answer_schema(path: str, status: int, kind: str, method: str = "post") -> Any:
    """What tells whether an answer, or an event of one, is as documented, and has nothing beside."""
    content = operation(path, method)["responses"][str(status)]["content"][kind]
    if "itemSchema" in content:
        content = {"schema": content["itemSchema"]["properties"]["data"]["anyOf"][0]["contentSchema"]}
    return validator(closed(content["schema"]))


def validator(schema: dict[str, Any]) -> Any:
    jsonschema_rs.meta.validate(schema)
    return jsonschema_rs.Draft202012Validator(schema)


def closed(schema: Any) -> Any:
    """The same schema with no property beside those that it names."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    if "properties" in inner:
        inner.setdefault("additionalProperties", False)
    return inner


@pytest.mark.parametrize("name", GOOD)
async def test_a_body_and_its_answer_are_as_documented(name: str) -> None:
    path, data = GOOD[name]
    async with serving(ScriptedRunner(answer=answers), completions="on", token_scores=True) as client:
        response = await client.post(path, json=data)
    validator(operation(path)["requestBody"]["content"]["application/json"]["schema"]).validate(data)
    assert response.status_code == 200, response.text
    answer_schema(path, 200, "application/json").validate(response.json())


@pytest.mark.parametrize("name", STREAMS)
async def test_every_event_of_a_stream_is_as_documented(name: str) -> None:
    path, data = GOOD[name]
    async with serving(ScriptedRunner(answer=answers), completions="on", token_scores=True) as client:
        response = await client.post(path, json={**data, "stream": True, "stream_options": {"include_usage": True}})
    kind = response.headers["content-type"].split(";")[0]
    events = events_of(response.text)
    assert len(events) > 1
    for event in events:
        answer_schema(path, 200, kind).validate(event)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MODERATIONS, TOKENIZE, MESSAGES, COUNT])
@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (400, {"json": {}}),
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (404, {"json": {"model": "gpt"}}),
        (413, {"content": b" " * 20_000, "headers": {"content-type": "application/json"}}),
        (415, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        (429, {"json": {}}),
        (503, {"json": {}}),
    ],
)
async def test_every_error_is_as_documented(path: str, status: int, request_of: dict[str, Any]) -> None:
    least = {CHAT: body(), COMPLETIONS: {"model": MODEL, "prompt": "x"}, MODERATIONS: {"input": "x"}, COUNT: body()}
    least[MESSAGES] = {**body(), "max_tokens": 9}
    fields = least.get(path, {"prompt": "x"})
    request = dict(request_of)
    if "json" in request and status != 400:
        request["json"] = {**fields, **request["json"]}
    runner = ScriptedRunner(ready=status != 503)
    async with serving(runner, max_body_bytes=10_000, max_rows=1, max_queue=0) as client:
        if status == 429:
            client_app: Any = client
            client_app._transport.app.state.service.gate.places.hold(1)
        response = await client.post(path, **request)
    assert response.status_code == status, response.text
    answer_schema(path, status, response.headers["content-type"]).validate(response.json())


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/{model}", "/health", "/ready", "/version", "/metrics", "/openapi.json"]
)
async def test_the_routes_without_a_body(path: str) -> None:
    async with serving(ScriptedRunner(), completions="on") as client:
        (await client.get("/v1/models")).raise_for_status()
        response = await client.get(path.format(model=MODEL))
        assert response.status_code == 200
        if path == "/openapi.json":
            return
    kind = response.headers["content-type"].split(";")[0]
    answer_schema(path, 200, kind, "get").validate(response.json() if kind == "application/json" else response.text)


NOT_ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "a field nobody knows": (CHAT, body(colour="red")),
    "tools of no kind": (CHAT, body(tools=[{"type": "custom", "custom": {"name": "f"}}])),
    "a string for a number": (CHAT, body(temperature="1")),
    "too many stops": (CHAT, body(stop=["a"] * 65)),
    "an empty stop": (CHAT, body(stop="")),
    "a bias of no token": (CHAT, body(logit_bias={"a": 1})),
    "metadata that is no text": (CHAT, body(metadata={"k": 1})),
    "a name with a space": (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "x", "name": "a b"}]}),
    "U+0000": (CHAT, body("\0")),
    "no content": (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": None}]}),
    "an image of the system": (CHAT, {"model": MODEL, "messages": [{"role": "system", "content": [
        {"type": "image_url", "image_url": {"url": PICTURE}}]}]}),
    "a prompt of both kinds": (COMPLETIONS, {"model": MODEL, "prompt": ["x", 5]}),
    "a suffix": (COMPLETIONS, {"model": MODEL, "prompt": "x", "suffix": "y"}),
    "a document": (MESSAGES, {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": [
        {"type": "document", "source": {}}]}]}),
    "a message without a limit": (MESSAGES, body()),
    "no input": (MODERATIONS, {"input": []}),
    "an input of both kinds": (MODERATIONS, {"input": ["x", {"type": "text", "text": "x"}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ACCEPTED)
async def test_a_body_that_is_refused_is_refused_by_the_document_too(name: str) -> None:
    path, data = NOT_ACCEPTED[name]
    async with serving(ScriptedRunner(), completions="on") as client:
        schema = operation(path)["requestBody"]["content"]["application/json"]["schema"]
        assert (await client.post(path, json=data)).status_code == 400
    assert not jsonschema_rs.Draft202012Validator(schema).is_valid(data)
