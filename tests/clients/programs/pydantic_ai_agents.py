"""pydantic-ai's agents on chat completions, and with `responses` as its argument on those."""

from __future__ import annotations

import base64
import sys
from typing import Any

import tasks
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{tasks.URL}/v1", api_key="none")
kind = OpenAIResponsesModel if sys.argv[1:] == ["responses"] else OpenAIChatModel
model: Any = kind(tasks.MODEL, provider=provider)


def plain() -> None:
    found = Agent(model).run_sync(tasks.HELLO).output
    tasks.expect(found == tasks.GREETING, found)


async def stream() -> None:
    async with Agent(model).run_stream(tasks.HELLO) as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    media, data = tasks.PICTURE.removeprefix("data:").split(";base64,")
    picture = BinaryContent(base64.b64decode(data), media_type=media)
    found = Agent(model).run_sync([tasks.ASK_PICTURE, picture]).output
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    for output in (tasks.Thing, NativeOutput(tasks.Thing)):
        found = Agent(model, output_type=output).run_sync(tasks.HELLO).output
        tasks.expect(isinstance(found, tasks.Thing), found)


def tools() -> None:
    cities: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather."""
        cities.append(city)
        return "sunny"

    found = Agent(model, tools=[weather]).run_sync(tasks.ASK_WEATHER).output
    tasks.expect((len(cities), found) == (3, tasks.DONE), (cities, found))


def refusal() -> str:
    told: list[str] = []
    for name, options in {"plain": {}, "tools": {"output_type": tasks.Thing}}.items():
        try:
            found = Agent(model, **options).run_sync(tasks.ASK_HARM).output
            told.append(f"{name}: {found}")
        except Exception as error:  # noqa: BLE001  how it shows a refusal
            told.append(f"{name}: {tasks.refused_in(error)}")
    tasks.expect(tasks.REFUSAL in told[0] or "with its text" in told[0], told)
    return "; ".join(told)


tasks.run(plain, stream, image, structured, tools, refusal)
