"""The messages of a chat: system, user and assistant turns, and the parts that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.api.fields import Name, NotSupported, Strict, Text

MAX_MESSAGES = 2048
MAX_PARTS = 1024


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: NotSupported = None


class RefusalPart(Strict):
    """An earlier refusal of the assistant."""

    type: Literal["refusal"]
    refusal: Text


class ImageURL(Strict):
    """Where the image is; `server.media.files` says what is accepted."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL
    prompt_cache_breakpoint: NotSupported = None


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


class SystemMessage(Strict):
    """Instructions; `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer"]
    content: _TextContent
    name: Name | None = None


class UserMessage(Strict):
    """What the user says and shows."""

    role: Literal["user"]
    content: _UserContent
    name: Name | None = None


class AssistantMessage(Strict):
    """An earlier answer; a refusal stands in for absent content."""

    role: Literal["assistant"]
    content: _AssistantContent | None = None
    refusal: Text | None = None
    name: Name | None = None
    audio: NotSupported = None
    function_call: NotSupported = None
    tool_calls: NotSupported = None

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
