"""A server with `--engine vllm`, as a user starts it."""

from __future__ import annotations

import pytest
from openai import BadRequestError

from models.demo.dialogue import pairs
from tests.end_to_end.processes import ServerProcess, user

pytestmark = pytest.mark.vllm
OPTIONS = ["--engine", "vllm", "--dtype", "float32", "--cache-gib", "0.1", "--threads", "1"]


@pytest.mark.timeout(600)
def test_it_answers_refuses_and_names_what_it_lacks() -> None:
    with ServerProcess(OPTIONS, start_seconds=500) as server:
        pair = next(pair for pair in pairs(1, seed=921, split="test") if pair.kind == "cross")
        for example, reason in ((pair.safe, "stop"), (pair.toxic, "content_filter")):
            messages = [user(example.question, *([example.image] if example.image else []))]
            answer = server.client.chat.completions.create(model=server.model, messages=messages, max_tokens=40)
            assert answer.choices[0].finish_reason == reason
            assert answer.choices[0].message.content
        with pytest.raises(BadRequestError, match=r"'response_format\.json_schema' is not supported"):
            server.client.chat.completions.create(
                model=server.model,
                messages=[user("Hello!")],
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            )
        assert server.metric("autosteer_guard_decisions_total", decision="steered") == 1
