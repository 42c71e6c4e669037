"""The messages of a chat: system, user and assistant turns, and the parts that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.api.fields import HintText, HintValue, Name, NotSupported, Strict, Text, only

MAX_MESSAGES = 2048
MAX_PARTS = 1024


class _CacheHints(Strict):
    """Where clients of other servers mark what is worth keeping; prefixes are kept here without it."""

    cache_control: HintValue = None
    prompt_cache_breakpoint: HintValue = None


class TextPart(_CacheHints):
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


class ImagePart(_CacheHints):
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


class AssistantMessage(_Turn):
    """An earlier answer, as the clients' own objects have it; a refusal stands in for absent content."""

    role: Literal["assistant"]
    content: _AssistantContent | None = None
    refusal: Text | None = None
    audio: NotSupported = None
    function_call: NotSupported = None
    tool_calls: Annotated[
        list[JsonValue] | None, only([], why="this server does not support earlier calls of tools")
    ] = None
    annotations: HintValue = None
    reasoning: HintValue = None
    reasoning_content: HintValue = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None:
            raise PydanticCustomError("content", "an assistant message needs content or refusal")
        return self


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
Part = TextPart | ImagePart | RefusalPart


def parts_of(message: SystemMessage | UserMessage | AssistantMessage) -> Sequence[Part]:
    """A message's content as parts, whichever way it was written."""
    content = message.content
    if isinstance(message, AssistantMessage) and (content is None or content == ""):
        content = message.refusal or ""
    if isinstance(content, str):
        return [TextPart(type="text", text=content)]
    assert content is not None
    return content
