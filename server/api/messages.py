"""The messages of a chat: system, user, assistant and tool turns, and the parts that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.api.fields import HintText, HintValue, Label, Name, NotSupported, Strict, Text
from server.api.tools import MAX_TOOLS, FunctionName

MAX_MESSAGES = 2048
MAX_PARTS = 1024


class CacheHints(Strict):
    """Where clients of other servers mark what is worth keeping; prefixes are kept here without it."""

    cache_control: HintValue = None
    prompt_cache_breakpoint: HintValue = None


class TextPart(CacheHints):
    """Words."""

    type: Literal["text"]
    text: Text


class RefusalPart(Strict):
    """An earlier refusal of the assistant."""

    type: Literal["refusal"]
    refusal: Text


class ImageURL(Strict):
    """Where the image is; `server.media.files` says what is accepted."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


def _url_alone(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(CacheHints):
    """An image; some clients send its URL without the object around it."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageURL,
        BeforeValidator(_url_alone),
        WithJsonSchema({"anyOf": [{"type": "string"}, ImageURL.model_json_schema()]}),
    ]


def _text_or_parts(value: object) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


# A discriminator of our own, because a plain union reports the errors of both its sides.
_EITHER = Discriminator(
    _text_or_parts, custom_error_type="content", custom_error_message="must be a string or a list of content parts"
)
_SIZE = Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)
_TextParts = Annotated[list[TextPart], _SIZE]
_UserParts = Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], _SIZE]
_AssistantParts = Annotated[list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]], _SIZE]
_TextContent = Annotated[Annotated[Text, Tag("text")] | Annotated[_TextParts, Tag("parts")], _EITHER]
_UserContent = Annotated[Annotated[Text, Tag("text")] | Annotated[_UserParts, Tag("parts")], _EITHER]
_AssistantContent = Annotated[Annotated[Text, Tag("text")] | Annotated[_AssistantParts, Tag("parts")], _EITHER]


class _Turn(Strict):
    """What every message may have."""

    name: Name | None = None
    id: HintText = None
    cache_control: HintValue = None


class SystemMessage(_Turn):
    """Instructions; `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(_Turn):
    """What the user says and shows."""

    role: Literal["user"]
    content: _UserContent


class CalledFunction(Strict):
    """The function of a call, and its arguments as JSON."""

    name: FunctionName
    arguments: Text


class ToolCall(Strict):
    """An earlier call of a tool; pieces of a stream that were put together still have their `index`."""

    id: Label
    type: Literal["function"]
    function: CalledFunction
    index: HintValue = None


class AssistantMessage(_Turn):
    """An earlier answer, as the clients' own objects have it; a refusal stands in for absent content."""

    role: Literal["assistant"]
    content: _AssistantContent | None = None
    refusal: Text | None = None
    audio: NotSupported = None
    function_call: NotSupported = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    annotations: HintValue = None
    reasoning: HintValue = None
    reasoning_content: HintValue = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise PydanticCustomError("content", "an assistant message needs content, refusal or tool_calls")
        return self


class ToolMessage(_Turn):
    """What a call of a tool returned."""

    role: Literal["tool"]
    tool_call_id: Label
    content: _TextContent


Turn = SystemMessage | UserMessage | AssistantMessage | ToolMessage
Message = Annotated[Turn, Field(discriminator="role")]
Part = TextPart | ImagePart | RefusalPart


def parts_of(message: Turn) -> Sequence[Part]:
    """A message's content as parts, whichever way it was written; one that only calls tools has none."""
    content = message.content
    if isinstance(message, AssistantMessage) and (content is None or content == ""):
        if message.tool_calls and not message.refusal:
            return []
        content = message.refusal or ""
    if isinstance(content, str):
        return [TextPart(type="text", text=content)]
    assert content is not None
    return content


def calls_of(message: Turn) -> Sequence[ToolCall]:
    """The calls of tools that a message makes."""
    return message.tool_calls or () if isinstance(message, AssistantMessage) else ()
