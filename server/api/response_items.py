"""The input of `/v1/responses`: items of every kind that its clients send, among them its own output, as messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.api.fields import HintText, HintValue, Label, Strict, Text
from server.api.messages import (
    MAX_MESSAGES,
    MAX_PARTS,
    AssistantMessage,
    CacheHints,
    CalledFunction,
    ImagePart,
    ImageURL,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from server.api.tools import FunctionName
from server.errors import BadRequest


class InputText(CacheHints):
    """Words."""

    type: Literal["input_text"]
    text: Text


class InputImage(CacheHints):
    """An image by its URL."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


class OutputText(CacheHints):
    """Words of an earlier answer."""

    type: Literal["output_text"]
    text: Text
    annotations: HintValue = None
    logprobs: HintValue = None


class OutputRefusal(CacheHints):
    """An earlier refusal."""

    type: Literal["refusal"]
    refusal: Text


_AnyPart = Annotated[InputText | InputImage | OutputText | OutputRefusal, Field(discriminator="type")]
_Parts = Annotated[list[_AnyPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
_EITHER = Discriminator(
    lambda value: "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None,
    custom_error_type="content",
    custom_error_message="must be a string or a list of content parts",
)
_Content = Annotated[Annotated[Text, Tag("text")] | Annotated[_Parts, Tag("parts")], _EITHER]


class _Item(Strict):
    id: HintText = None
    status: HintText = None


class MessageItem(_Item):
    """A message, as it is written by hand or as an answer had it."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    phase: HintText = None


class CallItem(_Item):
    """An earlier call of a function."""

    type: Literal["function_call"]
    call_id: Label
    name: FunctionName
    arguments: Text


class CallOutputItem(_Item):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: Label
    output: _Content


class ReasoningItem(_Item):
    """An earlier answer's reasoning; no prompt has it."""

    type: Literal["reasoning"]
    summary: HintValue = None
    content: HintValue = None
    encrypted_content: HintValue = None


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else "message" if isinstance(value, dict) and "role" in value else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="must be an item of type message, function_call, function_call_output or reasoning",
    ),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


@dataclass
class Turns:
    """Messages, and the path of each in the request."""

    messages: list[Message] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def path(self, message: int, part: int) -> str:
        """Where a part stands in the request."""
        return f"{self.places[message]}.content.{part}"

    def add(self, message: Message, place: str) -> None:
        """Add one more message."""
        self.messages.append(message)
        self.places.append(place)


def turns_of(instructions: str | None, given: str | Sequence[Any]) -> Turns:
    """The messages of a conversation. Raises BadRequest where there is nothing to answer, or a part is out of place."""
    turns = Turns()
    if instructions is not None:
        turns.add(SystemMessage(role="system", content=instructions), "instructions")
    if isinstance(given, str):
        turns.add(UserMessage(role="user", content=given), "input")
        return turns
    for number, item in enumerate(given):
        _add(turns, item, f"input.{number}")
    if not turns.places or turns.places[-1] == "instructions":
        raise BadRequest("'input' has no message.", param="input")
    return turns


def _add(turns: Turns, item: MessageItem | CallItem | CallOutputItem | ReasoningItem, place: str) -> None:
    match item:
        case MessageItem():
            turns.add(_message(item, place), place)
        case CallItem():
            function = CalledFunction(name=item.name, arguments=item.arguments)
            _call(turns, ToolCall(id=item.call_id, type="function", function=function), place)
        case CallOutputItem():
            content = [TextPart(type="text", text=part) for part in _texts(item.output, f"{place}.output")]
            turns.add(ToolMessage(role="tool", tool_call_id=item.call_id, content=content), place)


def _call(turns: Turns, call: ToolCall, place: str) -> None:
    """A call is of the assistant's message before it, if there is one."""
    last = turns.messages[-1] if turns.messages else None
    if isinstance(last, AssistantMessage):
        turns.messages[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or []), call]})
    else:
        turns.add(AssistantMessage(role="assistant", tool_calls=[call]), place)


def _message(item: MessageItem, place: str) -> Message:
    path = f"{place}.content"
    match item.role:
        case "user":
            return UserMessage(role="user", content=_user_parts(item.content, path))
        case "assistant":
            return AssistantMessage(role="assistant", content=_assistant_parts(item.content, path))
    texts = [TextPart(type="text", text=text) for text in _texts(item.content, path)]
    return SystemMessage(role=item.role, content=texts)


def _parts_of(content: str | Sequence[Any]) -> Sequence[Any]:
    return [InputText(type="input_text", text=content)] if isinstance(content, str) else content


def _texts(content: str | Sequence[Any], path: str) -> list[str]:
    """The words of content that is nothing else."""
    texts: list[str] = []
    for number, part in enumerate(_parts_of(content)):
        if not isinstance(part, (InputText, OutputText)):
            raise _misplaced(f"{path}.{number}.type", part.type)
        texts.append(part.text)
    return texts


def _user_parts(content: str | Sequence[Any], path: str) -> list[TextPart | ImagePart]:
    parts: list[TextPart | ImagePart] = []
    for number, part in enumerate(_parts_of(content)):
        match part:
            case InputText() | OutputText():
                parts.append(TextPart(type="text", text=part.text))
            case InputImage():
                parts.append(ImagePart(type="image_url", image_url=ImageURL(url=part.image_url, detail=part.detail)))
            case _:
                raise _misplaced(f"{path}.{number}.type", part.type)
    return parts


def _assistant_parts(content: str | Sequence[Any], path: str) -> list[TextPart | RefusalPart]:
    parts: list[TextPart | RefusalPart] = []
    for number, part in enumerate(_parts_of(content)):
        match part:
            case InputText() | OutputText():
                parts.append(TextPart(type="text", text=part.text))
            case OutputRefusal():
                parts.append(RefusalPart(type="refusal", refusal=part.refusal))
            case _:
                raise _misplaced(f"{path}.{number}.type", part.type)
    return parts


def _misplaced(param: str, kind: str) -> BadRequest:
    return BadRequest(f"Invalid value for '{param}': a message of this role has no part of type {kind!r}.", param=param)
