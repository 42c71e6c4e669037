"""The requests of Open WebUI's chat page, as recorded: its list of models, 28 tools with every message, a title."""

from __future__ import annotations

import json
from typing import Any

import httpx
import tasks

client = httpx.Client(base_url=f"{tasks.URL}/v1", timeout=60)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"built_in_{number}",
            "description": "A tool of the page",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "What to look for"},
                    "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["query"],
            },
        },
    }
    for number in range(28)
]


def streamed(*messages: Any, **options: Any) -> list[Any]:
    """The deltas of an answer that is sent as the page sends it."""
    body = {
        "model": tasks.MODEL,
        "messages": [*messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    deltas: list[Any] = []
    with client.stream("POST", "/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            tasks.expect(answer.status_code == 200, line)
            if line.startswith("data: {"):
                deltas += [choice["delta"] for choice in json.loads(line.removeprefix("data: "))["choices"]]
    return deltas


def text_of(deltas: list[Any]) -> str:
    return "".join(delta.get("content") or "" for delta in deltas)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def plain() -> None:
    models = client.get("/models").json()["data"]
    tasks.expect(models[0]["id"], models)
    title = client.post(
        "/chat/completions",
        json={"model": tasks.MODEL, "messages": [user(tasks.HELLO)], "stream": False, "max_completion_tokens": 1000},
    )
    tasks.expect(title.json()["choices"][0]["message"]["content"] == tasks.GREETING, title.text)


def stream() -> None:
    found = text_of(streamed({"role": "system", "content": "Be brief."}, user(tasks.HELLO)))
    tasks.expect(found == tasks.GREETING, found)


def image() -> None:
    picture = {"type": "image_url", "image_url": {"url": tasks.PICTURE}}
    found = text_of(streamed(user([{"type": "text", "text": tasks.ASK_PICTURE}, picture])))
    tasks.expect(found == tasks.SEEN, found)


def tools() -> None:
    messages = [user(tasks.ASK_WEATHER)]
    for _ in range(3):
        parts = [part for delta in streamed(*messages, tools=TOOLS) for part in delta.get("tool_calls") or ()]
        tasks.expect(parts, parts)
        name, identity = parts[0]["function"]["name"], parts[0]["id"]
        arguments = "".join(part["function"]["arguments"] for part in parts)
        tasks.expect("query" in json.loads(arguments), arguments)
        call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": identity, "content": "sunny"})
    found = text_of(streamed(*messages, tools=TOOLS))
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    found = text_of(streamed(user(tasks.ASK_HARM), tools=TOOLS))
    tasks.expect(found == tasks.REFUSAL, found)
    return "text"


tasks.run(plain, stream, image, tools, refusal)
