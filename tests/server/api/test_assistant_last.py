"""Chats whose last message is the assistant's: a policy says whether it takes them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.scripted import MODEL, ScriptedRunner, error_of, serving

USER = {"role": "user", "content": "hello"}
BEGUN = {"role": "assistant", "content": "Sure, here"}
CALLED = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("path", "field", "turns"),
    [
        (CHAT, "messages", [USER, BEGUN]),
        (RESPONSES, "input", [USER, BEGUN]),
        (RESPONSES, "input", [USER, CALLED]),
    ],
)
async def test_a_policy_says_whether_the_assistant_may_be_last(path: str, field: str, turns: list[Any]) -> None:
    for allowed, status in ((True, 200), (False, 403)):
        async with serving(ScriptedRunner(), assistant_last=allowed) as client:
            answer = await client.post(path, json={"model": MODEL, field: turns})
            assert (await client.post(path, json={"model": MODEL, field: [*turns, USER]})).status_code == 200
        assert answer.status_code == status, answer.text
    error = error_of(answer, 403)
    assert (error["param"], error["code"]) == (field, "assistant_last_off")
