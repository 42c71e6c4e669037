"""`/v1/messages` over HTTP: objects and events as Anthropic's client has them, strictly; turns, tools, errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter

from models.calls import FAMILIES
from models.tool_turns import Reads
from server.access.keys import hash_key
from server.app import create_app
from server.engine.wire import Parcel
from server.record.audit.record import content_of as audited_content
from server.request import Ask, Finish, RequestFailed
from server.settings.schema import Settings
from steering.policy import Mode, Verdict
from tests.server.api.test_tools import CALLS, SAID
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
    application,
    client_of,
    data_url,
    metric,
    png,
    serving,
)

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
WEATHER = {
    "name": "weather",
    "description": "Tell the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "input_schema": {"type": "object"}}
CALL = '{"name":"weather","arguments":{"city":"Rome"}}'
FILE = data_url(png(5, 5)).partition("base64,")[2]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": FILE}}


def saying(text: str, **options: Any) -> ScriptedRunner:
    return ScriptedRunner(answer=lambda _: Script.saying(text, **options))


def body(content: Any = "hello", **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": content}], **options}


async def ask(client: httpx.AsyncClient, content: Any = "hello", **options: Any) -> httpx.Response:
    return await client.post("/v1/messages", json=body(content, **options))


def error_of(answer: httpx.Response, status: int) -> Any:
    """The error in Anthropic's shape."""
    assert answer.status_code == status, answer.text
    found = ErrorResponse.model_validate(answer.json(), strict=True)
    assert found.request_id == answer.headers["request-id"]
    return found.error


def events_of(text: str) -> list[Any]:
    """The events of a stream, each of the official type, but for pings and errors."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event if event["type"] in ("ping", "error") else EVENT.validate_python(event, strict=True))
    return events


def content_in(events: list[Any]) -> list[dict[str, Any]]:
    """The blocks that a stream tells of."""
    blocks: list[dict[str, Any]] = []
    said: list[str] = []
    for event in events:
        if event.type == "content_block_start":
            assert event.index == len(blocks)
            blocks.append(event.content_block.to_dict())
            said.append("")
        elif event.type == "content_block_delta":
            assert event.index == len(blocks) - 1
            said[-1] += event.delta.text if event.delta.type == "text_delta" else event.delta.partial_json
    starts = [event.index for event in events if event.type == "content_block_start"]
    assert starts == [event.index for event in events if event.type == "content_block_stop"]
    return [
        {**block, "text": text} if block["type"] == "text" else {**block, "input": text}
        for block, text in zip(blocks, said, strict=True)
    ]


REFUSED = {"score": 0.9, "finish": Finish.CONTENT_FILTER}
ANSWERS: dict[str, tuple[ScriptedRunner, dict[str, Any], str, list[dict[str, Any]]]] = {
    "a text": (saying("hé"), {}, "end_turn", [{"type": "text", "text": "hé"}]),
    "nothing": (saying(""), {}, "end_turn", []),
    "a text that was cut": (saying("abcdef"), {"max_tokens": 3}, "max_tokens", [{"type": "text", "text": "abc"}]),
    "a text without room": (
        saying("abc"), {"max_tokens": CONTEXT, "messages": [{"role": "user", "content": "x" * (CONTEXT - 2)}]},
        "model_context_window_exceeded", [{"type": "text", "text": "ab"}],
    ),
    "a text up to a stop string": (
        saying("one STOP two"), {"stop_sequences": ["two", "STOP"]}, "stop_sequence", [{"type": "text", "text": "one "}]
    ),
    "a call of one": (
        saying('{"city":"Rome"}'), {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "tool", "name": "weather"}},
        "tool_use", [{"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}],
    ),
    "a call of any": (
        saying(CALL), {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        "tool_use", [{"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}],
    ),
    "JSON": (
        saying("{}"), {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        "end_turn", [{"type": "text", "text": "{}"}],
    ),
    "a steered refusal": (
        saying(REFUSAL, verdict=Verdict.STEERED, **REFUSED), {}, "refusal", [{"type": "text", "text": REFUSAL}]
    ),
    "a blocked call": (
        saying("", verdict=Verdict.BLOCKED, **REFUSED), {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        "refusal", [{"type": "text", "text": REFUSAL}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_message_whole_and_by_events_is_as_the_official_client_has_it(name: str) -> None:
    runner, options, reason, content = ANSWERS[name]
    async with serving(ScriptedRunner(answer=runner.answer)) as client:
        whole = await ask(client, **options)
        streamed = await ask(client, stream=True, **options)
    assert whole.status_code == 200, whole.text
    found = Message.model_validate(whole.json(), strict=True)
    assert (found.stop_reason, found.stop_sequence) == (reason, "STOP" if reason == "stop_sequence" else None)
    assert (found.stop_details is not None) == (reason == "refusal")
    assert [block.to_dict(exclude_none=True) | {"id": 0} for block in found.content] == [
        block | {"id": 0} for block in content
    ]
    events = events_of(streamed.text)
    begun, *_, delta, end = events
    assert (begun.message.content, begun.message.stop_reason) == ([], None)
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == (reason, found.stop_sequence)
    assert delta.usage.output_tokens == found.usage.output_tokens
    assert begun.message.usage.input_tokens == delta.usage.input_tokens == found.usage.input_tokens > 0
    assert end.type == "message_stop"
    for block, said in zip(content_in(events), content, strict=True):
        if said["type"] == "text":
            assert block["text"] == said["text"]
        else:
            assert (block["name"], json.loads(block["input"])) == (said["name"], said["input"])


async def test_a_text_and_the_calls_after_it_are_blocks_of_one_message() -> None:
    runner = saying(CALLS)
    runner.inputs.reads = Reads(tools=True, turns=True, calls=FAMILIES["hermes"])
    tools = [WEATHER, CLOCK]
    async with serving(runner) as client:
        whole = Message.model_validate((await ask(client, tools=tools, max_tokens=999)).json(), strict=True)
        events = events_of((await ask(client, tools=tools, max_tokens=999, stream=True)).text)
    said = [(block.type, getattr(block, "name", None)) for block in whole.content]
    assert said == [("text", None), ("tool_use", "weather"), ("tool_use", "clock")]
    assert whole.stop_reason == events[-2].delta.stop_reason == "tool_use"
    content: list[Any] = [*whole.content]
    for told, block in zip(content_in(events), content, strict=True):
        assert told["type"] == block.type
        if block.type == "tool_use":
            assert (told["name"], json.loads(told["input"])) == (block.name, block.input)
        else:
            assert told["text"] == block.text == SAID.rstrip()


async def test_a_call_that_was_cut_is_not_in_a_whole_answer_and_the_beginning_of_one_in_a_stream() -> None:
    options = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 7}
    async with serving(saying('{"city":"Rome"}')) as client:
        whole = (await ask(client, **options)).json()
        [block] = content_in(events_of((await ask(client, stream=True, **options)).text))
    assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")
    assert (block["name"], block["input"]) == ("weather", '{"city"')


class Knowing(ScriptedRunner):
    """Knows the first three tokens of every prompt."""

    def pack(self, asks: Sequence[Ask]) -> Parcel:
        parcel = super().pack(asks)
        for request in parcel.requests:
            request.cached_tokens = 3
        return parcel


async def test_tokens_that_were_known_are_told_apart_and_counted_without_an_answer() -> None:
    seen = [IMAGE, {"type": "text", "text": "hello"}]
    async with serving(Knowing()) as client:
        usage = (await ask(client, seen)).json()["usage"]
        asked = {"model": MODEL, "messages": [{"role": "user", "content": seen}]}
        counted = await client.post("/v1/messages/count_tokens", json=asked)
    assert usage == {
        "input_tokens": 5 + IMAGE_TOKENS - 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3,
        "output_tokens": 5,
    }  # fmt: skip
    assert MessageTokensCount.model_validate(counted.json(), strict=True).input_tokens == 5 + IMAGE_TOKENS


# what is asked -----------------------------------------------------------------------------------------------------

USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"role": "user", "content": [{"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}, IMAGE]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "x", "signature": "y"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "let me see", "citations": None},
        {**USE, "caller": {"type": "direct"}},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain", "is_error": False},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "sun"}]},
        {"type": "tool_result", "tool_use_id": "toolu_3"},
        {"type": "text", "text": "and?"},
    ]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "y"}]},
    {"role": "user", "content": "now"},
]  # fmt: skip


async def test_turns_of_every_kind_reach_the_template() -> None:
    runner = ScriptedRunner()
    async with serving(runner) as client:
        answer = await ask(
            client, messages=TURNS, system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
        )
    assert answer.status_code == 200, answer.text
    text = [[part.get("text", part["type"]) for part in message["content"]] for message in runner.inputs.messages]
    roles = [message["role"] for message in runner.inputs.messages]
    assert list(zip(roles, text, strict=True)) == [
        ("system", ["be", "brief"]),
        ("user", ["one", "two", "image"]),
        ("assistant", ["let me see"]),
        ("tool", ["rain"]),
        ("tool", ["sun"]),
        ("tool", [""]),
        ("user", ["and?", "now"]),
    ]
    _, _, called, told, *_ = runner.inputs.messages
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    assert called["tool_calls"] == [{"id": "toolu_1", "function": function}]
    assert told["tool_call_id"] == "toolu_1"
    assert [image.size for image in runner.inputs.images] == [(5, 5)]


async def test_every_honoured_field_reaches_the_engine_and_hints_are_named() -> None:
    runner = ScriptedRunner()
    async with serving(runner) as client:
        answer = await client.post(
            "/v1/messages?beta=true",
            headers={"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta-2025-01-01"},
            json=body(
                temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["x"], tools=[{**WEATHER, "type": "custom"}],
                tool_choice={"type": "none"}, guard={"mode": "block", "threshold": 0.1}, metadata={"user_id": "u"},
                service_tier="auto", thinking={"type": "enabled", "budget_tokens": 1024},
                output_config={"effort": "low"}, container=None,
            ),
        )  # fmt: skip
        quiet = await ask(client, thinking={"type": "disabled"}, metadata=None)
    assert answer.status_code == 200, answer.text
    asked = runner.requests[0].ask
    params = asked.params
    assert (params.temperature, params.top_p, params.top_k, asked.max_tokens) == (0.5, 0.9, 5, 64)
    assert (asked.policy.mode, asked.policy.threshold) == (Mode.BLOCK, 0.1)
    ignored = "anthropic-beta, metadata, output_config.effort, service_tier, thinking"
    assert answer.headers["x-autosteer-ignored"] == ignored
    assert "x-autosteer-ignored" not in quiet.headers


async def test_tools_are_told_where_one_must_be_called_and_named_where_none_need_be() -> None:
    runner = saying('{"city":"Rome"}')
    async with serving(runner) as client:
        await ask(client, tools=[CLOCK, WEATHER], tool_choice={"type": "tool", "name": "weather"})
        function = {"name": "weather", "description": "Tell the weather", "parameters": WEATHER["input_schema"]}
        assert [*runner.inputs.tools] == [{"type": "function", "function": function}]
        free = await ask(client, tools=[WEATHER], tool_choice={"type": "auto"})
    assert free.headers["x-autosteer-ignored"] == "tools"
    assert free.json()["stop_reason"] == "end_turn"
    async with serving(saying("hello"), optional_tools="refuse") as client:
        assert error_of(await ask(client, tools=[WEATHER]), 400).message.startswith("'tools': This model")


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


NOT_DONE: dict[str, tuple[dict[str, Any], str]] = {
    "a prefill": ({"messages": [*TURNS, {"role": "assistant", "content": "Sure, here"}]}, "'messages'"),
    "a system prompt alone": ({"messages": [{"role": "system", "content": "x"}]}, "'messages'"),
    "no limit": ({"max_tokens": None}, "'max_tokens'"),
    "an unknown field": ({"inputs": "x"}, "'inputs'"),
    "a tool of the server": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'tools.0.type'"),
    "two tools of a name": ({"tools": [CLOCK, CLOCK]}, "'tools.1.name'"),
    "arguments that are no object": (
        {"tools": [{"name": "x", "input_schema": {"type": "array"}}]}, "'tools.0.input_schema.type'"
    ),
    "a tool that is not there": (
        {"tools": [CLOCK], "tool_choice": {"type": "tool", "name": "x"}}, "'tool_choice.name'"
    ),
    "a choice by name of any": ({"tools": [CLOCK], "tool_choice": {"type": "any", "name": "x"}}, "tool_choice.name"),
    "a document": (
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
        "'messages.0.content.0.type'",
    ),
    "an image that a tool returned": (
        {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "x", "content": [IMAGE]}]}]},
        "'messages.0.content.0.content.0.type'",
    ),
    "an image of the assistant": (
        {"messages": [{"role": "assistant", "content": [IMAGE]}]}, "'messages.0.content.0.type'"
    ),
    "a broken image": (
        {"messages": [*TURNS, {"role": "user", "content": [{"type": "text", "text": "x"}, {
            **IMAGE, "source": {**IMAGE["source"], "data": "AAAA"}}]}]},  # type: ignore[dict-item]
        "'messages.6.content.1.source'",
    ),
    "an image from elsewhere": (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]}]},
        "'messages.0.content.0.source'",
    ),
    "an image that was uploaded": (
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "file", "file_id": "x"}}]}]},
        "'messages.0.content.0.source.type'",
    ),
    "an input too deep": (
        {"messages": [{"role": "assistant", "content": [{**USE, "input": deep(300)}]}]}, "'messages.0.content.0.input"
    ),
    "U+0000": ({"system": "\0"}, "'system'"),
    "a container": ({"container": "x"}, "'container'"),
    "servers of tools": ({"mcp_servers": []}, "'mcp_servers'"),
    "a schema that cannot be followed": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "'output_config.format.schema'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_DONE)
async def test_what_is_not_done_is_refused_by_name(name: str) -> None:
    options, param = NOT_DONE[name]
    async with serving(ScriptedRunner()) as client:
        error = error_of(await ask(client, **options), 400)
    assert error.type == "invalid_request_error"
    assert param in error.message


async def test_an_older_version_of_the_api_is_refused_and_a_newer_one_named() -> None:
    async with serving(ScriptedRunner()) as client:
        for version in ("2023-01-01", "latest", "2023-06-01x"):
            answer = await client.post("/v1/messages", json=body(), headers={"anthropic-version": version})
            assert "'anthropic-version'" in error_of(answer, 400).message
        newer = await client.post("/v1/messages", json=body(), headers={"anthropic-version": "2099-01-01"})
    assert newer.headers["x-autosteer-ignored"] == "anthropic-version"


@pytest.mark.parametrize(
    "options",
    [
        {"system": "x" * 101},
        {"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "x" * 101}]}]}]},
        {"messages": [*TURNS[:2], {"role": "assistant", "content": [{**USE, "input": {"a": "x" * 101}}]}, TURNS[-1]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 11}] * 10}]},
        {"tools": [{**WEATHER, "description": "x" * 101}], "tool_choice": {"type": "any"}},
    ],
)  # fmt: skip
async def test_the_words_of_every_block_count_against_the_limit(options: dict[str, Any]) -> None:
    runner = ScriptedRunner()
    async with serving(runner, max_prompt_characters=100, max_images=2) as client:
        error = error_of(await ask(client, **options), 400)
        assert error_of(await ask(client, [IMAGE] * 3), 400).message.endswith(
            "The request has 3 images, the limit is 2."
        )
    assert "the limit is 100" in error.message
    assert not runner.inputs.messages


# what holds for every API ------------------------------------------------------------------------------------------


async def test_every_error_has_anthropic_s_shape_and_type() -> None:
    access = {
        "keys": [{"name": "limited", "hash": hash_key("sk"), "policy": "limited"}],
        "policies": {"limited": {"requests_per_minute": 6}},
    }
    runner = ScriptedRunner(answer=lambda _: Script(finish=Finish.ERROR, error=RequestFailed("inner state")))
    async with serving(runner, max_body_bytes=1000, **access) as client:
        assert error_of(await ask(client), 401).type == "authentication_error"
        client.headers["x-api-key"] = "sk"
        assert error_of(await ask(client, model="gpt"), 404).type == "not_found_error"
        assert error_of(await client.get("/v1/messages"), 405).type == "invalid_request_error"
        assert error_of(await client.post("/v1/messages/batches", json={}), 404).type == "not_found_error"
        assert error_of(await ask(client, "x" * 1000), 413).type == "invalid_request_error"
        assert error_of(await client.post("/v1/messages/", content=b"{}"), 415).type == "invalid_request_error"
        loose = await ask(client, guard={"mode": "off"})
        assert error_of(loose, 403).type == "permission_error"
        failed = error_of(await ask(client), 500)
        assert (failed.type, "inner" in failed.message) == ("api_error", False)
        await ask(client)
        assert error_of(await ask(client), 429).type == "rate_limit_error"
        runner.ready = False
        assert error_of(await ask(client), 503).type == "overloaded_error"
        rejected = {
            reason: await metric(client, "autosteer_admission_rejections_total", reason=reason)
            for reason in ("unauthorized", "not_found", "body_too_large", "forbidden", "rate_limited", "not_ready")
        }
    assert set(rejected.values()) == {1}


async def test_a_failure_in_the_middle_is_an_event() -> None:
    runner = saying("ab", finish=Finish.ERROR, error=RequestFailed("inner state"))
    async with serving(ScriptedRunner(answer=runner.answer)) as client:
        streamed = await ask(client, stream=True)
    *_, last = events_of(streamed.text)
    assert ErrorResponse.model_validate(last, strict=True).error.type == "api_error"
    assert "inner" not in streamed.text


async def test_a_stream_without_news_pings() -> None:
    runner = saying("x", finish=None)
    app = application(runner, keep_alive_seconds=0.02)
    async with client_of(app):
        connection = Connection(app, orjson.dumps(body(stream=True)), path="/v1/messages")
        await connection.has_said(lambda text: text.count("event: ping") > 1)
        await connection.leave()
    assert all(event == {"type": "ping"} for event in events_of(connection.text) if isinstance(event, dict))


async def test_a_record_says_what_was_asked_and_what_became_of_it() -> None:
    sink = MemorySink()
    runner = saying(REFUSAL, verdict=Verdict.STEERED, **REFUSED)
    settings = Settings(audit=audit_settings(content=True))
    sent = body(messages=TURNS, system="be brief")
    async with client_of(create_app(settings, as_any(runner), name=MODEL, sink=sink)) as client:
        await client.post("/v1/messages", json=sent)
        refused = await metric(client, "autosteer_request_success_total", finished_reason="content_filter")
        steered = await metric(client, "autosteer_guard_decisions_total", decision="steered", modality="image")
    [record] = sink.records
    assert (record.route, record.outcome, record.decision) == ("POST /v1/messages", "completed", "steered")
    assert (record.answer, refused, steered) == (orjson.dumps([REFUSAL]).decode(), 1, 1)
    kept = orjson.loads(record.content or "")
    assert kept["system"] == "be brief"
    digest = "sha256:" + hashlib.sha256(png(5, 5)).hexdigest()
    assert kept["messages"][1]["content"][1]["source"]["data"] == digest


def test_a_record_keeps_the_words_of_a_call_and_no_file() -> None:
    long = "x" * 1000
    asked = {"messages": [{"role": "assistant", "content": [{**USE, "input": {"city": long, "data": long}}]}]}
    assert orjson.loads(audited_content(asked, {})) == asked
    other = {"messages": [{"role": "user", "content": [{"type": "text", "data": long, "input": {"data": long}}]}]}
    assert long not in audited_content(other, {}).decode()
