"""The anthropic client."""

from __future__ import annotations

from typing import Any

import tasks
from anthropic import Anthropic

client = Anthropic(base_url=tasks.URL, api_key="none")
WEATHER: Any = {
    "name": "weather",
    "description": "Tell the weather",
    "input_schema": tasks.CITY,
}


def asked(*messages: Any, **options: Any) -> Any:
    return client.messages.create(model=tasks.MODEL, max_tokens=500, messages=[*messages], **options)


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def plain() -> None:
    found = asked(user(tasks.HELLO), system="Be brief.").content[0].text
    tasks.expect(found == tasks.GREETING, found)
    counted = client.messages.count_tokens(model=tasks.MODEL, messages=[user(tasks.HELLO)])
    tasks.expect(counted.input_tokens > 0, counted)


def stream() -> None:
    with client.messages.stream(model=tasks.MODEL, max_tokens=500, messages=[user(tasks.HELLO)]) as events:
        pieces = [*events.text_stream]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    kind, data = tasks.PICTURE.removeprefix("data:").split(";base64,")
    source = {"type": "base64", "media_type": kind, "data": data}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": tasks.ASK_PICTURE}]
    found = asked(user(blocks)).content[0].text
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    schema = {**tasks.Thing.model_json_schema(), "additionalProperties": False}
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    found = asked(user(tasks.HELLO), output_config=wanted).content[0].text
    tasks.Thing.model_validate_json(found)


def tools() -> None:
    messages = [user(tasks.ASK_WEATHER)]
    for _ in range(3):
        answer = asked(*messages, tools=[WEATHER])
        tasks.expect(answer.stop_reason == "tool_use", answer)
        calls = [block for block in answer.content if block.type == "tool_use"]
        messages.append({"role": "assistant", "content": answer.content})
        messages.append(user([{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]))
    found = asked(*messages, tools=[WEATHER]).content[0].text
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    answer = asked(user(tasks.ASK_HARM))
    tasks.expect((answer.stop_reason, answer.content[0].text) == ("refusal", tasks.REFUSAL), answer)
    return "a text block, stop_reason refusal"


tasks.run(plain, stream, image, structured, tools, refusal)
