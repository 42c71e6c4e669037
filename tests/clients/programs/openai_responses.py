"""The openai client on responses."""

from __future__ import annotations

from typing import Any

import tasks
from openai import OpenAI

client = OpenAI(base_url=f"{tasks.URL}/v1", api_key="none")
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather",
    "parameters": tasks.CITY,
    "strict": True,
}


def asked(given: Any, **options: Any) -> Any:
    return client.responses.create(model=tasks.MODEL, input=given, **options)


def plain() -> None:
    found = asked(tasks.HELLO, instructions="Be brief.").output_text
    tasks.expect(found == tasks.GREETING, found)


def stream() -> None:
    pieces = [event.delta for event in asked(tasks.HELLO, stream=True) if event.type == "response.output_text.delta"]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)
    with client.responses.stream(model=tasks.MODEL, input=tasks.HELLO) as events:
        for _ in events:
            pass
        tasks.expect(events.get_final_response().output_text == tasks.GREETING, events)


def image() -> None:
    parts = [{"type": "input_text", "text": tasks.ASK_PICTURE}, {"type": "input_image", "image_url": tasks.PICTURE}]
    found = asked([{"role": "user", "content": parts}]).output_text
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    answer = client.responses.parse(model=tasks.MODEL, input=tasks.HELLO, text_format=tasks.Thing)
    tasks.expect(isinstance(answer.output_parsed, tasks.Thing), answer)


def tools() -> None:
    items: list[Any] = [{"role": "user", "content": tasks.ASK_WEATHER}]
    for _ in range(3):
        output = asked(items, tools=[WEATHER]).output
        calls = [item for item in output if item.type == "function_call"]
        tasks.expect(calls, output)
        items += output
        items += [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    found = asked(items, tools=[WEATHER]).output_text
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    answer = asked(tasks.ASK_HARM)
    [part] = answer.output[0].content
    tasks.expect((part.type, part.refusal) == ("refusal", tasks.REFUSAL), answer)
    return "a content part of type refusal"


tasks.run(plain, stream, image, structured, tools, refusal)
