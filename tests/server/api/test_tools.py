"""Tools over HTTP: forced calls, their streams, their refusals, turns of tools, and tools that may be called or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.tool_turns import Reads
from server.answer.calls import CallOfSeveral
from server.answer.delta import Kind
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


async def test_tools_that_may_be_called_or_not_are_ignored_and_named_or_refused() -> None:
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
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}
    async with serving(ScriptedRunner()) as client:
        assert error_of(await chat(client, tools=[tool], tool_choice="required"), 400)["param"] == "tools"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_of_a_call_of_one_of_several_come_as_they_are_certain(size: int) -> None:
    parser = CallOfSeveral()
    deltas = [delta for at in range(0, len(ENVELOPE), size) for delta in parser.push(ENVELOPE[at : at + size], ())]
    deltas += parser.finish()
    assert (deltas[0].kind, deltas[0].text) == (Kind.CALL, "weather")
    assert {delta.kind for delta in deltas[1:]} == {Kind.ARGUMENTS}
    assert "".join(delta.text for delta in deltas[1:]) == ARGUMENTS


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
