"""OpenAI's chat completion request. A field is honoured or refused with 400; null counts as absent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.api.answer_fields import AnswerFields, check_stream_options
from server.api.fields import NO_NUL, Label, NotSupported, Positive, Strict, Text, only, unless_null
from server.api.formats import JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from server.api.messages import MAX_MESSAGES, Message
from server.api.validation import parse
from server.errors import BadRequest

MAX_METADATA = 16
MAX_LOGPROBS = 20


class ModerationStage(Strict):
    """What moderation does: tell the score and leave the rest to the policy, or have a flagged request blocked."""

    mode: Literal["score", "block"]


class ModerationPolicy(Strict):
    """Which side is scored: the input, by the guard."""

    input: ModerationStage | None = None
    output: NotSupported = None


class Moderation(Strict):
    """Ask for the guard's score of this request; `model` is the served model."""

    model: str
    policy: ModerationPolicy | None = None

    @property
    def blocks(self) -> bool:
        """Whether a flagged request is to be blocked, whatever the policy does otherwise."""
        return self.policy is not None and self.policy.input is not None and self.policy.input.mode == "block"


def _metadata(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("metadata", "must be an object of strings")
    if len(value) > MAX_METADATA:
        raise PydanticCustomError("metadata", f"at most {MAX_METADATA} pairs are allowed, not {len(value)}")
    for key, text in value.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise PydanticCustomError(
                "metadata", "keys have at most 64 characters and values are strings of at most 512"
            )
    return value


_METADATA_SCHEMA = WithJsonSchema(
    {
        "type": ["object", "null"],
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512, **NO_NUL},
        "maxProperties": MAX_METADATA,
    }
)


class ChatCompletionRequest(AnswerFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]

    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    moderation: Moderation | None = None
    safety_identifier: Label | None = None
    metadata: Annotated[dict[str, Text] | None, unless_null(_metadata), _METADATA_SCHEMA] = None

    modalities: Annotated[list[Literal["text"]] | None, only(["text"], why="only ['text'] is supported")] = None
    store: Annotated[Literal[False] | None, only(False, why="answers are not stored")] = None

    audio: NotSupported = None
    function_call: NotSupported = None
    functions: NotSupported = None
    parallel_tool_calls: NotSupported = None
    prediction: NotSupported = None
    prompt_cache_key: NotSupported = None
    prompt_cache_options: NotSupported = None
    prompt_cache_retention: NotSupported = None
    reasoning_effort: NotSupported = None
    service_tier: NotSupported = None
    tool_choice: NotSupported = None
    tools: NotSupported = None
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    @property
    def limit(self) -> tuple[str, int] | None:
        """Name and value of the field that limits the answer."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit

    @property
    def answer_schema(self) -> dict[str, JsonValue] | None:
        """The JSON schema that the answer satisfies, if any."""
        match self.response_format:
            case JsonObjectFormat():
                return {"type": "object"}
            case JsonSchemaFormat(json_schema=wanted):
                return wanted.schema_
        return None

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are reported beside each one's log-probability; None: not even that."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_chat_request(data: object) -> ChatCompletionRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    chat = parse(ChatCompletionRequest, data)
    check_stream_options(chat)
    if chat.top_logprobs and not chat.logprobs:
        raise BadRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    if chat.max_tokens is not None and chat.max_completion_tokens not in (None, chat.max_tokens):
        raise BadRequest(
            f"'max_tokens' ({chat.max_tokens}) and 'max_completion_tokens' ({chat.max_completion_tokens}) "
            "say different things; give one of them.",
            param="max_tokens",
        )
    return chat
