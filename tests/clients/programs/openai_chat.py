"""The openai client on chat completions."""

from __future__ import annotations

from typing import Any

import tasks
from openai import OpenAI

client = OpenAI(base_url=f"{tasks.URL}/v1", api_key="none")
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": tasks.CITY,
    },
}


def said(*messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(model=tasks.MODEL, messages=[*messages], **options).choices[0].message


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def plain() -> None:
    found = said(user(tasks.HELLO)).content
    tasks.expect(found == tasks.GREETING, found)


def stream() -> None:
    chunks = client.chat.completions.create(
        model=tasks.MODEL, messages=[user(tasks.HELLO)], stream=True, stream_options={"include_usage": True}
    )
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    content = [{"type": "text", "text": tasks.ASK_PICTURE}, {"type": "image_url", "image_url": {"url": tasks.PICTURE}}]
    found = said(user(content)).content
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    answer = client.chat.completions.parse(model=tasks.MODEL, messages=[user(tasks.HELLO)], response_format=tasks.Thing)
    tasks.expect(isinstance(answer.choices[0].message.parsed, tasks.Thing), answer)


def tools() -> None:
    messages = [user(tasks.ASK_WEATHER)]
    for _ in range(3):
        message = said(*messages, tools=[WEATHER])
        tasks.expect(message.tool_calls, message)
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    found = said(*messages, tools=[WEATHER]).content
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    found = said(user(tasks.ASK_HARM)).content
    tasks.expect(found == tasks.REFUSAL, found)
    chunks = client.chat.completions.create(model=tasks.MODEL, messages=[user(tasks.ASK_HARM)], stream=True)
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    tasks.expect(streamed == tasks.REFUSAL, streamed)
    asked = [user(tasks.ASK_HARM)]
    answer = client.chat.completions.parse(model=tasks.MODEL, messages=asked, response_format=tasks.Thing)
    tasks.expect(answer.choices[0].message.refusal == tasks.REFUSAL, answer)
    return "text; with a schema message.refusal"


tasks.run(plain, stream, image, structured, tools, refusal)
