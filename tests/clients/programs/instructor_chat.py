"""instructor over the openai client: its default mode (tools), JSON schema, partial objects in a stream."""

from __future__ import annotations

from typing import Any

import instructor
import tasks
from openai import OpenAI

openai = OpenAI(base_url=f"{tasks.URL}/v1", api_key="none")
client = instructor.from_openai(openai)


def made(content: Any, by: Any = client) -> Any:
    messages = [{"role": "user", "content": content}]
    return by.chat.completions.create(model=tasks.MODEL, messages=messages, response_model=tasks.Thing, max_retries=1)


def plain() -> None:
    found = made(tasks.HELLO)
    tasks.expect(isinstance(found, tasks.Thing), found)


def stream() -> None:
    messages: Any = [{"role": "user", "content": tasks.HELLO}]
    partial = client.chat.completions.create_partial(
        model=tasks.MODEL, messages=messages, response_model=tasks.Thing, max_retries=1
    )
    *_, last = partial
    tasks.expect(last.colour, last)


def image() -> None:
    picture = {"type": "image_url", "image_url": {"url": tasks.PICTURE}}
    found = made([{"type": "text", "text": tasks.ASK_PICTURE}, picture])
    tasks.expect(isinstance(found, tasks.Thing), found)


def structured() -> None:
    found = made(tasks.HELLO, instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA))
    tasks.expect(isinstance(found, tasks.Thing), found)


def refusal() -> str:
    try:
        found = made(tasks.ASK_HARM)
    except Exception as error:  # noqa: BLE001  how it shows a refusal
        shown: str = tasks.refused_in(error)
        return shown
    raise AssertionError(found)


tasks.run(plain, stream, image, structured, refusal)
