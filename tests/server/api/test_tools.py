"""Tools over HTTP: forced calls, their streams, their refusals, turns of tools, and tools that may be called or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.calls import FAMILIES
from models.tool_turns import Reads
from server.request import Finish
from steering.policy import Verdict
from tests.server.scripted import MODEL, REFUSAL, Script, ScriptedRunner, chat, error_of, events_of, serving

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
ARGUMENTS = '{"city":"a \\"}] town"}'
ENVELOPE = f'{{"name":"weather","arguments":{ARGUMENTS}}}'
FORCED: dict[str, tuple[dict[str, Any], str]] = {
    "the one tool": ({"tools": [WEATHER], "tool_choice": "required"}, ARGUMENTS),
    "one by its name": ({"tools": [CLOCK, WEATHER], "tool_choice": NAMED, "parallel_tool_calls": False}, ARGUMENTS),
    "one of several": ({"tools": [CLOCK, WEATHER], "tool_choice": "required"}, ENVELOPE),
}


def saying(text: str, **options: Any) -> ScriptedRunner:
    return ScriptedRunner(answer=lambda _: Script.saying(text, **options))


@pytest.mark.parametrize("how", FORCED)
async def test_a_forced_call_whole_and_streamed(how: str) -> None:
    options, said = FORCED[how]
    runner = saying(said)
    async with serving(runner) as client:
        whole = (await chat(client, n=2, **options)).json()
        events = events_of((await chat(client, n=2, stream=True, **options)).text)
    assert runner.requests[0].ask.schema is not None
    identities = {choice["message"]["tool_calls"][0]["id"] for choice in whole["choices"]}
    assert len(identities) == 2
    for index, choice in enumerate(whole["choices"]):
        [call] = choice["message"]["tool_calls"]
        assert call == {
            "id": call["id"],
            "type": "function",
            "function": {"name": "weather", "arguments": ARGUMENTS},
        }
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        parts = [part for event in events for part in event["choices"] if part["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": None, "refusal": None}
        first, *pieces = [part["delta"]["tool_calls"][0] for part in parts if "tool_calls" in part["delta"]]
        assert first["id"].startswith("call_")
        assert (first["index"], first["type"]) == (0, "function")
        assert first["function"] == {"name": "weather", "arguments": ""}
        assert "".join(piece["function"]["arguments"] for piece in pieces) == ARGUMENTS
        assert {piece["index"] for piece in pieces} == {0}
        assert parts[-1]["finish_reason"] == "tool_calls"


async def test_a_call_that_reaches_its_limit_is_the_beginning_of_one() -> None:
    async with serving(saying(ENVELOPE)) as client:
        options = FORCED["one of several"][0]
        cut = (await chat(client, max_tokens=len(ENVELOPE) - 4, **options)).json()["choices"][0]
        before_its_name = (await chat(client, max_tokens=9, **options)).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS[:-3]
    assert before_its_name["message"] == {"role": "assistant", "content": None, "refusal": None}


async def test_the_template_is_told_of_the_tools_that_will_be_called() -> None:
    runner = saying("{}")
    async with serving(runner) as client:
        await chat(client, tools=[CLOCK, WEATHER], tool_choice=NAMED)
        function = {key: value for key, value in WEATHER["function"].items() if key != "strict"}  # type: ignore[attr-defined]
        assert [*runner.inputs.tools] == [{"type": "function", "function": function}]
        runner.inputs.reads = Reads(tools=False, turns=True)
        answer = await chat(client, tools=[WEATHER], tool_choice="required")
    assert not runner.inputs.tools
    assert answer.headers["x-autosteer-ignored"] == "tools.function.description"


async def test_of_allowed_tools_alone_one_is_called() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    async with serving(saying(ARGUMENTS)) as client:
        answer = (await chat(client, tools=[CLOCK, WEATHER], tool_choice=allowed)).json()
        allowed["allowed_tools"]["mode"] = "auto"  # type: ignore[index]
        free = await chat(client, tools=[CLOCK, WEATHER], tool_choice=allowed)
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert free.headers["x-autosteer-ignored"] == "tools"


async def test_turns_of_tools_reach_the_template() -> None:
    runner = ScriptedRunner()
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "content": "It rains.", "tool_calls": [{**call, "index": 0}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    async with serving(runner) as client:
        answer = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert answer.status_code == 200
    assert answer.headers["x-autosteer-ignored"] == "messages.tool_calls.index"
    _, called, told, both, _ = runner.inputs.messages
    function = {"name": "weather", "arguments": json.loads(ARGUMENTS)}
    assert called == {"role": "assistant", "content": [], "tool_calls": [{"id": "call_1", "function": function}]}
    assert told == {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]}
    assert both["content"] == [{"type": "text", "text": "It rains."}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_a_refused_call_is_a_refusal_and_no_call(verdict: Verdict, stream: bool) -> None:
    said = REFUSAL if verdict is Verdict.STEERED else ""
    runner = saying(said, verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    async with serving(runner) as client:
        answer = await chat(client, tools=[WEATHER], tool_choice="required", stream=stream)
    if stream:
        parts = [part for event in events_of(answer.text) for part in event["choices"]]
        assert not any("tool_calls" in part["delta"] for part in parts)
        assert "".join(part["delta"].get("refusal") or "" for part in parts) == REFUSAL
        assert parts[-1]["finish_reason"] == "stop"
    else:
        [choice] = answer.json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": None, "refusal": REFUSAL}
        assert choice["finish_reason"] == "stop"


async def test_tools_that_the_model_cannot_choose_to_call_are_ignored_and_named_or_refused() -> None:
    runner = saying("hello")
    async with serving(runner) as client:
        answer = await chat(client, tools=[WEATHER])
    assert answer.headers["x-autosteer-ignored"] == "tools"
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert not runner.inputs.tools
    async with serving(saying("hello"), optional_tools="refuse") as client:
        assert error_of(await chat(client, tools=[WEATHER]), 400)["param"] == "tools"
        assert (await chat(client, tools=[WEATHER], tool_choice="none")).status_code == 200
        assert (await chat(client, tools=[CLOCK], tool_choice="required")).status_code == 200


async def test_a_schema_of_a_tool_that_cannot_be_followed_is_refused() -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}, "strict": True}
    async with serving(ScriptedRunner()) as client:
        answer = await chat(client, tools=[{"type": "function", "function": tool}], tool_choice="required")
    assert error_of(answer, 400)["param"] == "tools"


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_what_of_a_tool_s_schema_cannot_be_followed_is_a_hint_unless_it_is_strict(choice: str) -> None:
    """As servers of tools list them, written for other readers than grammars."""
    parameters = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {
            "place": {"oneOf": [{"type": "string", "pattern": "^(?!x)"}, {"type": "integer", "format": "int32"}]},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["unit"],
        "not": {"required": ["place", "nothing"]},
    }
    said = '<tool_call>\n{"name": "f", "arguments": {"place": "Rome", "unit": "C"}}\n</tool_call>'
    runner = saying(said)
    runner.inputs.reads = Reads(tools=True, turns=True, calls=FAMILIES["hermes"])
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    async with serving(runner) as client:
        answer = await chat(client, tools=[tool, CLOCK], tool_choice=choice)
    assert answer.headers["x-autosteer-ignored"] == "tools.function.parameters"
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"place": "Rome", "unit": "C"}


async def test_a_schema_does_not_grow_with_what_is_named_of_the_tools() -> None:
    """A schema of 64 KiB that is named 128 times held up all others while it was copied as often."""

    def tool(name: str, properties: int) -> dict[str, Any]:
        parameters = {"properties": {f"p{number}": {"type": "string"} for number in range(properties)}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool("a", 40), *(tool(name, 1000) for name in "bcdefg")]
    named = {"type": "function", "function": {"name": "a"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named] * 128}}
    runner = saying("{}")
    async with serving(runner) as client:
        refused = error_of(await chat(client, tools=tools, tool_choice="required"), 400)
        assert (await chat(client, tools=tools, tool_choice=allowed)).status_code == 200
    assert refused["param"] == "tools"
    assert "more than 8192 values" in refused["message"]


# the model chooses ---------------------------------------------------------------------------------------------------

SAID = "Let me look.\n"
CALLED = '\n{"name": "weather", "arguments": {"city": "a }</tool_call> town"}}\n</tool_call>'
CALLS = f'{SAID}<tool_call>{CALLED}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'
TOLD = [("weather", '{"city": "a }</tool_call> town"}'), ("clock", "{}")]


def choosing(text: str, family: str = "hermes", **options: Any) -> ScriptedRunner:
    """A model that writes calls as this family does."""
    runner = saying(text, **options)
    runner.inputs.reads = Reads(tools=True, turns=True, calls=FAMILIES[family])
    return runner


def streamed_calls(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that the deltas of one choice add up to, as a whole answer has them."""
    calls: list[dict[str, Any]] = []
    for delta in (call for part in parts for call in part["delta"].get("tool_calls", ())):
        if delta["index"] == len(calls):
            calls.append({**delta, "function": {**delta["function"]}})
        else:
            assert delta.keys() == {"index", "function"}
            assert delta["index"] == len(calls) - 1
            calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
    assert [call.pop("index") for call in calls] == [*range(len(calls))]
    return calls


@pytest.mark.parametrize("text", ["hello <b>, {", CALLS, CALLS.removeprefix(SAID)])
async def test_text_and_the_calls_after_it_whole_and_streamed(text: str) -> None:
    runner = choosing(text)
    async with serving(runner) as client:
        whole = await chat(client, n=2, tools=[WEATHER, CLOCK])
        events = events_of((await chat(client, n=2, tools=[WEATHER, CLOCK], stream=True)).text)
    assert "x-autosteer-ignored" not in whole.headers
    assert len([*runner.inputs.tools]) == 2
    ids: set[str] = set()
    for choice in whole.json()["choices"]:
        parts = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        message = choice["message"]
        calls, streamed = message.get("tool_calls", []), streamed_calls(parts)
        assert [call["function"] for call in calls] == [call["function"] for call in streamed]
        assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == (TOLD if calls else [])
        assert bool(calls) == ("tool_call" in text)
        content = "".join(part["delta"].get("content") or "" for part in parts)
        assert content == (message["content"] or "") == ("" if calls and SAID not in text else text.split("\n<tool")[0])
        assert (message["content"] is None) == (content == "")
        assert choice["finish_reason"] == parts[-1]["finish_reason"] == ("tool_calls" if calls else "stop")
        assert parts[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        ids |= {call["id"] for call in [*calls, *streamed]}
    assert len(ids) == (8 if "tool_call" in text else 0)


async def test_calls_of_a_response() -> None:
    tools = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]  # type: ignore[dict-item]
    asked = {"model": MODEL, "input": "hello", "tools": tools}
    async with serving(choosing(CALLS)) as client:
        whole = (await client.post("/v1/responses", json=asked)).json()
        text = (await client.post("/v1/responses", json={**asked, "stream": True})).text
    done = json.loads(text.split("data: ")[-1])["response"]
    for response in (whole, done):
        said, *calls = response["output"]
        assert said["content"][0]["text"] == SAID.rstrip()
        assert [(call["type"], call["name"], call["arguments"]) for call in calls] == [
            ("function_call", *call) for call in TOLD
        ]
    assert text.count("event: response.function_call_arguments.done") == 2


async def test_one_call_where_calls_are_not_to_be_parallel() -> None:
    def grammar(runner: ScriptedRunner) -> str:
        schema = runner.requests[-1].ask.schema
        assert schema is not None
        return schema.source

    runner = choosing("hello")
    async with serving(runner) as client:
        await chat(client, tools=[WEATHER], parallel_tool_calls=False)
        assert "further0" not in grammar(runner)
        await chat(client, tools=[WEATHER])
        assert "further0" in grammar(runner)
        await chat(client, tools=[WEATHER], tool_choice=NAMED)
        assert "further0" not in grammar(runner)


async def test_a_call_that_must_be_made_is_made_in_the_model_s_own_syntax() -> None:
    async with serving(choosing("<tool_call>" + CALLED)) as client:
        [choice] = (await chat(client, tools=[WEATHER], tool_choice="required")).json()["choices"]
    assert choice["message"]["content"] is None
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_refused_has_no_call(stream: bool) -> None:
    runner = choosing(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER)
    async with serving(runner) as client:
        answer = await chat(client, tools=[WEATHER], stream=stream)
    if stream:
        parts = [part for event in events_of(answer.text) for part in event["choices"]]
        assert "".join(part["delta"].get("content") or "" for part in parts) == REFUSAL
        assert parts[-1]["finish_reason"] == "content_filter"
    else:
        [choice] = answer.json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": REFUSAL, "refusal": None}
        assert choice["finish_reason"] == "content_filter"


async def test_json_beside_tools_is_honoured_where_it_begins_otherwise_than_a_call() -> None:
    wanted = {"type": "json_object"}
    runner = choosing("{}")
    async with serving(runner) as client:
        answer = await chat(client, tools=[WEATHER], response_format=wanted)
    assert "x-autosteer-ignored" not in answer.headers
    assert answer.json()["choices"][0]["message"]["content"] == "{}"
    runner = choosing("{}", "llama")
    async with serving(runner) as client:
        answer = await chat(client, tools=[WEATHER], response_format=wanted)
    assert answer.headers["x-autosteer-ignored"] == "tools"


@pytest.mark.parametrize("field", ["ignore_eos", "logprobs", "min_tokens"])
async def test_what_does_not_go_with_calls_is_refused_by_name(field: str) -> None:
    tools: dict[str, Any] = {"tools": [WEATHER], field: 3 if field == "min_tokens" else True}
    async with serving(choosing("x")) as client:
        assert error_of(await chat(client, **tools), 400)["param"] == field
        assert error_of(await chat(client, tool_choice="required", **tools), 400)["param"] == field
        assert (await chat(client, tool_choice="none", **tools)).status_code == 200
        if field != "logprobs":
            json_wanted = {"response_format": {"type": "json_object"}, field: tools[field]}
            assert error_of(await chat(client, **json_wanted), 400)["param"] == field
    async with serving(saying("x")) as client:
        assert (await chat(client, **tools)).status_code == 200  # they are ignored there
