"""Every field of every API with null, and every number with values at the edge of what a number can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from server.api.anthropic_request import MessagesRequest
from server.api.chat_request import ChatCompletionRequest
from server.api.completion_request import CompletionRequest
from server.api.responses_request import ResponsesRequest
from tests.server.scripted import MODEL, ScriptedRunner, serving

TURNS = [{"role": "user", "content": "hello"}]
APIS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, {"messages": TURNS}),
    "/v1/completions": (CompletionRequest, {"prompt": "hello"}),
    "/v1/responses": (ResponsesRequest, {"input": "hello"}),
    "/v1/messages": (MessagesRequest, {"messages": TURNS, "max_tokens": 9}),
}
# 2 ** 63, what no 64 bits hold, and what JSON has no word for, among them
NUMBERS = ["64.0", "0.5", "-0.0", "5e-324", "1e-39", "1e308", "9223372036854775808", "1e400", "NaN", "-Infinity"]


def numeric(model: type[BaseModel]) -> Iterator[str]:
    """The fields that take a number."""
    for name, schema in model.model_json_schema()["properties"].items():
        if any(each.get("type") in ("integer", "number") for each in (schema, *schema.get("anyOf", ()))):
            yield name


@pytest.mark.parametrize("path", APIS)
async def test_no_number_breaks_anything_and_what_is_refused_is_named(path: str) -> None:
    model, least = APIS[path]
    async with serving(ScriptedRunner()) as client:
        for name in numeric(model):
            for number in NUMBERS:
                data = json.dumps({"model": MODEL, **least, name: "NUMBER"}).replace('"NUMBER"', number)
                answer = await client.post(path, content=data, headers={"content-type": "application/json"})
                if answer.status_code != 200:
                    assert answer.status_code == 400, (name, number, answer.text)
                    message = answer.json()["error"]["message"]
                    assert name in message or "not valid JSON" in message, (name, number, message)


@pytest.mark.parametrize("path", APIS)
async def test_null_is_nothing_in_every_field(path: str) -> None:
    model, least = APIS[path]
    async with serving(ScriptedRunner()) as client:
        for name, field in model.model_fields.items():
            if not field.is_required():
                answer = await client.post(path, json={"model": MODEL, **least, field.alias or name: None})
                assert answer.status_code == 200, (name, answer.text)
