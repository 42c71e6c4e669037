"""Calls that must be made, of functions drawn by chance: valid arguments, the same whole and streamed."""

from __future__ import annotations

import json
import secrets
from random import Random
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLTokenizer

from models.calls import FAMILIES
from models.grammar import plain_json
from models.schema import compile_source
from models.tool_turns import Reads
from tests.random_schemas import random_object, sampled
from tests.server.api.test_tools import streamed_calls
from tests.server.scripted import EOS, Script, ScriptedRunner, byte_tokenizer, chat, events_of, serving

VOCABULARY = LLTokenizer(plain_json(byte_tokenizer()), n_vocab=258, eos_token=[EOS])


def following() -> ScriptedRunner:
    """An engine whose answers are drawn from the grammar of their request, the same for the same grammar."""

    def script(_: str) -> Script:
        schema = runner.requests[-1].ask.schema
        assert schema is not None
        return Script(tokens=sampled(compile_source(VOCABULARY, schema.source), Random(schema.source), EOS))

    runner = ScriptedRunner(answer=script)
    return runner


@pytest.mark.parametrize("count", [15, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_calls_of_random_functions(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda length: "0" * 2 * length)  # ids are made of the answer's
    runner = following()
    async with serving(runner, default_max_tokens=100_000) as client:
        for seed in range(count):
            chance = Random(seed)
            schemas = {f"f{number}": random_object(chance) for number in range(chance.randint(1, 3))}
            runner.inputs.reads = Reads(True, True, chance.choice([None, *FAMILIES.values()]))
            options: dict[str, Any] = {
                "tools": [
                    {"type": "function", "function": {"name": name, "parameters": schema}}
                    for name, schema in schemas.items()
                ],
                "tool_choice": "required",
                "parallel_tool_calls": chance.random() < 0.5,
            }
            answer = await chat(client, **options)
            assert answer.status_code == 200, answer.text
            [choice] = answer.json()["choices"]
            events = events_of((await chat(client, stream=True, **options)).text)
            calls = choice["message"]["tool_calls"]
            assert calls == streamed_calls([part for event in events for part in event["choices"]])
            assert len({call["id"] for call in calls}) == len(calls) >= 1
            assert choice["finish_reason"] == "tool_calls"
            for call in calls:
                jsonschema_rs.validate(schemas[call["function"]["name"]], json.loads(call["function"]["arguments"]))
