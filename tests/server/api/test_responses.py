"""`/v1/responses` over HTTP: objects and events as the official client has them, strictly; items in and out."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.request import Finish, RequestFailed
from steering.policy import Verdict
from tests.server.scripted import MODEL, REFUSAL, Script, ScriptedRunner, data_url, error_of, png, serving

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CLOCK = {"type": "function", "name": "clock"}
CALL = '{"name":"weather","arguments":{"city":"Rome"}}'


def saying(text: str, **options: Any) -> ScriptedRunner:
    return ScriptedRunner(answer=lambda _: Script.saying(text, **options))


async def respond(client: httpx.AsyncClient, given: Any = "hello", **options: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"model": MODEL, "input": given, **options})


def events_of(text: str) -> list[Any]:
    """The events of a stream, each of the official type, numbered from 0."""
    blocks = [block for block in text.split("\n\n") if block]
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(EVENT.validate_python(event, strict=True))
    return events


ANSWERS: dict[str, tuple[ScriptedRunner, dict[str, Any]]] = {
    "a text": (saying("hé"), {}),
    "nothing": (saying(""), {}),
    "a text that was cut": (saying("abcdef"), {"max_output_tokens": 3}),
    "a call of one": (saying('{"city":"Rome"}'), {"tools": [WEATHER], "tool_choice": "required"}),
    "a call of one of several": (saying(CALL), {"tools": [WEATHER, CLOCK], "tool_choice": "required"}),
    "a call that was cut": (
        saying(CALL), {"tools": [WEATHER, CLOCK], "tool_choice": "required", "max_output_tokens": 35}
    ),
    "JSON": (
        saying("{}"),
        {"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}}}},
    ),
    "a steered refusal": (saying(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER), {}),
    "a blocked call": (
        saying("", verdict=Verdict.BLOCKED, score=0.9, finish=Finish.CONTENT_FILTER),
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_response_whole_and_by_events_is_as_the_official_client_has_it(name: str) -> None:
    runner, options = ANSWERS[name]
    async with serving(ScriptedRunner(answer=runner.answer)) as client:
        whole = await respond(client, **options)
        streamed = await respond(client, stream=True, **options)
    assert whole.status_code == 200, whole.text
    found = Response.model_validate(whole.json(), strict=True)
    events = events_of(streamed.text)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == f"response.{found.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == found.output_text
    done = [event.item for event in events if event.type == "response.output_item.done"]
    for output in (last.response.output, done):
        assert [_without_id(item) for item in output] == [_without_id(item) for item in found.output]
    for event in events:
        if event.type == "response.function_call_arguments.done":
            assert event.arguments == found.output[0].arguments  # type: ignore[union-attr]


def _without_id(item: Any) -> dict[str, Any]:
    data: dict[str, Any] = item.model_dump()
    return {key: value for key, value in data.items() if key not in ("id", "call_id")}


async def output_of(name: str) -> dict[str, Any]:
    runner, options = ANSWERS[name]
    async with serving(ScriptedRunner(answer=runner.answer)) as client:
        answer: dict[str, Any] = (await respond(client, **options)).json()
    return answer


async def test_what_an_answer_says() -> None:
    text = await output_of("a text")
    [message] = text["output"]
    assert (text["status"], message["status"], message["content"][0]["text"]) == ("completed", "completed", "hé")
    assert text["usage"]["output_tokens"] == 3
    cut = await output_of("a text that was cut")
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    for name in ("a call of one", "a call of one of several"):
        [call] = (await output_of(name))["output"]
        assert (call["type"], call["name"], call["arguments"]) == ("function_call", "weather", '{"city":"Rome"}')
    for name in ("a steered refusal", "a blocked call"):
        refused = await output_of(name)
        assert refused["output"][0]["content"] == [{"type": "refusal", "refusal": REFUSAL}]
        assert refused["status"] == "completed"


async def test_items_of_every_kind_reach_the_template_and_its_own_output_is_taken_back() -> None:
    runner = ScriptedRunner()
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "image_url": data_url(png(5, 5)), "detail": "low"},
        ]},
        (await output_of("a text"))["output"][0],
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {**(await output_of("a call of one"))["output"][0], "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        (await output_of("a steered refusal"))["output"][0],
        {"type": "message", "role": "user", "content": "and"},
    ]  # fmt: skip
    async with serving(runner) as client:
        answer = await respond(
            client, items, instructions="be brief", store=True, include=["reasoning.encrypted_content"]
        )
    assert answer.status_code == 200, answer.text
    messages = [*runner.inputs.messages]
    roles = ["system", "system", "user", "assistant", "tool", "assistant", "user"]
    assert [message["role"] for message in messages] == roles
    assert messages[0]["content"] == [{"type": "text", "text": "be brief"}]
    assert messages[2]["content"] == [{"type": "text", "text": "look"}, {"type": "image"}]
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    assert messages[3]["content"] == [{"type": "text", "text": "hé"}]
    assert messages[3]["tool_calls"] == [{"id": "call_1", "function": function}]
    assert messages[4]["content"] == [{"type": "text", "text": "rain"}]
    assert messages[5]["content"] == [{"type": "text", "text": REFUSAL}]
    assert [image.size for image in runner.inputs.images] == [(5, 5)]
    assert {"store", "include"} <= {*answer.headers["x-autosteer-ignored"].split(", ")}


async def test_what_generators_of_load_ask_for_is_honoured() -> None:
    runner = saying("abcdef")
    async with serving(runner) as client:
        stopped = await respond(client, stop="d")
        await respond(client, stop=None, ignore_eos=True)
    assert stopped.json()["output"][0]["content"][0]["text"] == "abc"
    assert [request.ask.params.min_tokens > 4096 for request in runner.requests] == [False, True]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an earlier response": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "the background": ({"background": True}, "background"),
    "a conversation": ({"conversation": "conv_1"}, "conversation"),
    "a stored prompt": ({"prompt": {"id": "x"}}, "prompt"),
    "a hosted tool": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "two tools of a name": ({"tools": [CLOCK, CLOCK]}, "tools.1.name"),
    "a tool that is not there": (
        {"tools": [CLOCK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"
    ),
    "log-probabilities": ({"top_logprobs": 3}, "top_logprobs"),
    "what is not included": ({"include": ["message.output_text.logprobs"]}, "include.0"),
    "no items": ({"input": []}, "input"),
    "reasoning alone": ({"input": [{"type": "reasoning", "id": "x"}]}, "input"),
    "an item of another kind": ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
    "an image of the assistant": (
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:"}]}]},
        "input.0.content.0.type",
    ),
    "a part of another kind": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0.type"
    ),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "a schema that cannot be followed": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format.schema"
    ),
    "an unknown field": ({"inputs": "x"}, "inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_done_is_refused_by_name(name: str) -> None:
    options, param = REFUSED[name]
    async with serving(ScriptedRunner()) as client:
        assert error_of(await respond(client, **options), 400)["param"] == param


async def test_a_failure_in_the_middle_is_an_event() -> None:
    runner = saying("ab", finish=Finish.ERROR, error=RequestFailed("inner state"))
    async with serving(ScriptedRunner(answer=runner.answer)) as client:
        streamed = await respond(client, stream=True)
        assert error_of(await respond(client), 500)["code"] == "generation_failed"
    last = events_of(streamed.text)[-1]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert "inner" not in streamed.text


async def test_tools_that_may_be_called_or_not_are_ignored_and_named() -> None:
    async with serving(saying("hello")) as client:
        answer = await respond(client, tools=[WEATHER])
    assert answer.headers["x-autosteer-ignored"] == "tools"
    assert answer.json()["output"][0]["content"][0]["text"] == "hello"
