"""langchain-openai on chat completions, and with `responses` as its argument on those."""

from __future__ import annotations

import sys
from typing import Any

import tasks
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

RESPONSES = sys.argv[1:] == ["responses"]
model = ChatOpenAI(base_url=f"{tasks.URL}/v1", api_key="none", model=tasks.MODEL, use_responses_api=RESPONSES or None)


def forecast(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


weather = tool("weather")(forecast)


def text_of(message: Any) -> str:
    """Of a chat a string, of a response a list of blocks."""
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or block.get("refusal") or "" for block in content)


def plain() -> None:
    found = text_of(model.invoke(tasks.HELLO))
    tasks.expect(found == tasks.GREETING, found)


def stream() -> None:
    pieces = [text_of(chunk) for chunk in model.stream(tasks.HELLO)]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    picture = {"type": "image_url", "image_url": {"url": tasks.PICTURE}}
    parts: Any = [{"type": "text", "text": tasks.ASK_PICTURE}, picture]
    found = text_of(model.invoke([HumanMessage(content=parts)]))
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(tasks.Thing, method=method).invoke(tasks.HELLO)
        tasks.expect(isinstance(found, tasks.Thing), found)


def tools() -> None:
    bound = model.bind_tools([weather])
    messages: list[Any] = [HumanMessage(tasks.ASK_WEATHER)]
    for _ in range(3):
        answer: Any = bound.invoke(messages)
        tasks.expect(answer.tool_calls, answer)
        messages.append(answer)
        messages += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
    found = text_of(bound.invoke(messages))
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    found = text_of(model.invoke(tasks.ASK_HARM))
    tasks.expect(found == tasks.REFUSAL, found)
    try:
        answer = model.with_structured_output(tasks.Thing).invoke(tasks.ASK_HARM)
    except Exception as error:  # noqa: BLE001  how it shows a refusal
        return f"text; with a schema {tasks.refused_in(error)}"
    return f"text; with a schema {answer!r}"


tasks.run(plain, stream, image, structured, tools, refusal)
