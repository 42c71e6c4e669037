"""openai-agents on responses, its default, and with `chat` as its argument on chat completions."""

from __future__ import annotations

import sys
from typing import Any

import tasks
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)
kind = OpenAIChatCompletionsModel if sys.argv[1:] == ["chat"] else OpenAIResponsesModel


def agent(**options: Any) -> Agent[Any]:
    client = AsyncOpenAI(base_url=f"{tasks.URL}/v1", api_key="none")
    model = kind(model=tasks.MODEL, openai_client=client)
    return Agent(name="Assistant", instructions="Be brief.", model=model, **options)


async def plain() -> None:
    found = (await Runner.run(agent(), tasks.HELLO)).final_output
    tasks.expect(found == tasks.GREETING, found)


async def stream() -> None:
    result = Runner.run_streamed(agent(), tasks.HELLO)
    pieces = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


async def image() -> None:
    parts = [{"type": "input_text", "text": tasks.ASK_PICTURE},
             {"type": "input_image", "image_url": tasks.PICTURE, "detail": "auto"}]  # fmt: skip
    given: Any = [{"role": "user", "content": parts}]
    found = (await Runner.run(agent(), given)).final_output
    tasks.expect(found == tasks.SEEN, found)


async def structured() -> None:
    found = (await Runner.run(agent(output_type=tasks.Thing), tasks.HELLO)).final_output
    tasks.expect(isinstance(found, tasks.Thing), found)


async def tools() -> None:
    cities: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather."""
        cities.append(city)
        return "sunny"

    found = (await Runner.run(agent(tools=[function_tool(weather)]), tasks.ASK_WEATHER)).final_output
    tasks.expect((len(cities), found) == (3, tasks.DONE), (cities, found))


async def refusal() -> str:
    try:
        found = (await Runner.run(agent(), tasks.ASK_HARM)).final_output
    except Exception as error:  # noqa: BLE001  how it shows a refusal
        shown: str = tasks.refused_in(error)
        tasks.expect("with its text" in shown, shown)
        return shown
    tasks.expect(found == tasks.REFUSAL, found)
    return "text"


tasks.run(plain, stream, image, structured, tools, refusal)
