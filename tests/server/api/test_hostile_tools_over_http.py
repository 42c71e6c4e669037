"""Hostile tools through the three APIs: no special token of theirs in a prompt, and no error of the server's own."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from models.grammar import plain_json
from models.inputs import InputBuilder
from server.engine.host import Inputs
from server.engine.protocol import Facts
from tests.models import test_tools
from tests.models.test_hostile_tools import schema, words
from tests.models.test_tools import HERMES
from tests.server.fakes import as_any
from tests.server.scripted import MODEL, Script, ScriptedGuard, ScriptedRunner, backbone_info, serving
from tests.tiny import TinyModels

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
COUNTS = [40, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
DEEP: Any = {}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.fixture(scope="module")
def builder(tiny_models: TinyModels) -> InputBuilder:
    inputs = tiny_models.backbone("qwen2").inputs
    return InputBuilder(inputs._processor, inputs._family, HERMES, inputs.image_token_id)


def running(builder: InputBuilder) -> ScriptedRunner:
    """An engine that says nothing, behind a real template and tokenizer."""
    runner = ScriptedRunner(answer=lambda _: Script())
    tokenizer = builder._tokenizer
    info = backbone_info(vocab_size=len(tokenizer), eos_ids=frozenset({tokenizer.eos_token_id or 0}))
    facts = Facts(as_any(info), as_any(ScriptedGuard()), 3, ())
    runner.model = facts, Inputs(builder, tokenizer, plain_json(tokenizer))
    return runner


def body(path: str, name: str, said: list[str], parameters: Any, choice: str) -> dict[str, Any]:
    """A request with a tool, a call of it and its result, in the shape of an API."""
    description, value, result, user = said
    if path == "/v1/messages":
        kind = {"auto": "auto", "required": "any"}[choice]
        use = {"type": "tool_use", "id": "c1", "name": name, "input": {"k": value}}
        done = {"type": "tool_result", "tool_use_id": "c1", "content": result}
        turns = [("user", user), ("assistant", [use]), ("user", [done])]
        return {
            "model": MODEL,
            "max_tokens": 9,
            "messages": [{"role": role, "content": content} for role, content in turns],
            "tools": [{"name": name, "description": description, "input_schema": parameters}],
            "tool_choice": {"type": kind},
        }
    function = {"name": name, "description": description, "parameters": parameters}
    arguments = json.dumps({"k": value})
    if path == "/v1/responses":
        items = [
            {"role": "user", "content": user},
            {"type": "function_call", "call_id": "c1", "name": name, "arguments": arguments},
            {"type": "function_call_output", "call_id": "c1", "output": result},
        ]
        return {"model": MODEL, "input": items, "tools": [{"type": "function", **function}], "tool_choice": choice}
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]
    tools = [{"type": "function", "function": function}]
    return {"model": MODEL, "messages": messages, "tools": tools, "tool_choice": choice}


def hostile_schema(chance: Random) -> Any:
    """Words that spell tokens and syntax; or what no grammar is made of, or no schema is."""
    odd = [
        DEEP, {"not": {}}, {"$ref": "#"}, {"properties": {words(chance): {"$ref": "#/$defs/x"}}}, {"type": "string"},
        {"properties": {"a": {"type": "string", "pattern": words(chance)}}}, {"properties": words(chance)},
        {"enum": [{"k": words(chance)}]}, {"x-guidance": {"lenient": True}}, {"required": [words(chance)]},
        {"properties": {"a": {"oneOf": [schema(chance, "a", words(chance)), {"format": words(chance)}]}}},
    ]  # fmt: skip
    return chance.choice(odd) if chance.random() < 0.3 else schema(chance, words(chance), words(chance))


@pytest.mark.parametrize("count", COUNTS)
async def test_hostile_tools_forge_nothing_and_break_nothing(builder: InputBuilder, count: int) -> None:
    runner = running(builder)
    async with serving(runner) as client:
        expected: dict[tuple[str, str], list[int]] = {}
        for path in PATHS:
            for choice in ("auto", "required"):
                plain = body(path, "n", ["a"] * 4, {"properties": {"k": {"enum": ["v"]}}}, choice)
                assert (await client.post(path, json=plain)).status_code == 200
                expected[path, choice] = test_tools.special(builder, runner.requests[-1].prompt.ids)
        refused = 0
        for seed in range(count):
            chance = Random(seed)
            path, choice = chance.choice(PATHS), chance.choice(["auto", "required"])
            name = words(chance) if chance.random() < 0.05 else "".join(chance.choices("aim_-end0", k=9))
            asked = len(runner.requests)
            said = [words(chance) for _ in range(4)]
            answer = await client.post(path, json=body(path, name, said, hostile_schema(chance), choice))
            assert answer.status_code in (200, 400), (seed, answer.text)
            refused += answer.status_code == 400
            for request in runner.requests[asked:]:
                assert test_tools.special(builder, request.prompt.ids) == expected[path, choice], seed
            runner.requests.clear()
    print(f"{count} requests, {refused} of them refused")
    assert refused < count / 2
