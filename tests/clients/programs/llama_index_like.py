"""llama-index's OpenAILike."""

from __future__ import annotations

from typing import Any

import tasks
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

model: Any = OpenAILike(
    model=tasks.MODEL,
    api_base=f"{tasks.URL}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=4096,
)


def user(*blocks: Any) -> Any:
    return ChatMessage(role="user", blocks=[*blocks])


def plain() -> None:
    found = model.chat([user(TextBlock(text=tasks.HELLO))]).message.content
    tasks.expect(found == tasks.GREETING, found)


def stream() -> None:
    pieces = [part.delta for part in model.stream_chat([user(TextBlock(text=tasks.HELLO))])]
    tasks.expect("".join(pieces) == tasks.GREETING, pieces)


def image() -> None:
    found = model.chat([user(TextBlock(text=tasks.ASK_PICTURE), ImageBlock(url=tasks.PICTURE))]).message.content
    tasks.expect(found == tasks.SEEN, found)


def structured() -> None:
    found = model.as_structured_llm(tasks.Thing).chat([user(TextBlock(text=tasks.HELLO))]).raw
    tasks.expect(isinstance(found, tasks.Thing), found)


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def tools() -> None:
    tool = FunctionTool.from_defaults(weather)
    history: list[Any] = [user(TextBlock(text=tasks.ASK_WEATHER))]
    for _ in range(3):
        answer = model.chat_with_tools([tool], chat_history=history)
        calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=True)
        history.append(answer.message)
        for call in calls:
            said = weather(**call.tool_kwargs)
            history.append(ChatMessage(role="tool", content=said, additional_kwargs={"tool_call_id": call.tool_id}))
    found = model.chat_with_tools([tool], chat_history=history).message.content
    tasks.expect(found == tasks.DONE, found)


def refusal() -> str:
    found = model.chat([user(TextBlock(text=tasks.ASK_HARM))]).message.content
    tasks.expect(found == tasks.REFUSAL, found)
    return "text"


tasks.run(plain, stream, image, structured, tools, refusal)
