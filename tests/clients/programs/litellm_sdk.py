"""litellm's SDK."""

from __future__ import annotations

from typing import Any

import litellm
import tasks

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": tasks.CITY,
    },
}


def asked(*messages: Any, **options: Any) -> Any:
    return litellm.completion(
        model=f"openai/{tasks.MODEL}", api_base=f"{tasks.URL}/v1", api_key="none", messages=[*messages], **options
    )


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def plain() -> None:
    found = asked(user(tasks.HELLO)).choices[0].message.content
    tasks.expect(found == tasks.GREETING, found)


def stream() -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in asked(user(tasks.HELLO), stream=True)]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    content = [{"type": "text", "text": tasks.ASK_PICTURE}, {"type": "image_url", "image_url": {"url": tasks.PICTURE}}]
    found = asked(user(content)).choices[0].message.content
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    tasks.Thing.model_validate_json(asked(user(tasks.HELLO), response_format=tasks.Thing).choices[0].message.content)


def tools() -> None:
    messages = [user(tasks.ASK_WEATHER)]
    for _ in range(3):
        message = asked(*messages, tools=[WEATHER]).choices[0].message
        tasks.expect(message.tool_calls, message)
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    found = asked(*messages, tools=[WEATHER]).choices[0].message.content
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    found = asked(user(tasks.ASK_HARM)).choices[0].message.content
    tasks.expect(found == tasks.REFUSAL, found)
    return "text"


def fallback() -> None:
    """Too long a prompt is the error by which a fallback to a longer context is found."""
    try:
        asked(user("word " * 3000))
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")


tasks.run(plain, stream, image, structured, tools, refusal, fallback)
