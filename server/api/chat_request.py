"""OpenAI's chat completion request. A field is honoured, a hint, or refused with 400; null counts as absent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from server.api.answer_fields import AnswerFields, ChatGuardOptions, check_least_tokens
from server.api.fields import (
    HintFlag,
    HintObject,
    HintText,
    HintValue,
    Integer,
    NotSupported,
    Positive,
    Strict,
    only,
)
from server.api.formats import JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from server.api.messages import MAX_MESSAGES, Message
from server.api.metadata import Metadata
from server.api.tools import MAX_TOOLS, Tool, ToolChoice
from server.api.validation import parse
from server.errors import BadRequest

MAX_LOGPROBS = 20
_USE_TOOLS: Final = "this server does not support it; use 'tools' and 'tool_choice'"
_NoItems = Annotated[list[JsonValue], Field(max_length=0)]


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


class ChatCompletionRequest(AnswerFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]

    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    moderation: Moderation | None = None
    guard: ChatGuardOptions | None = None
    metadata: Metadata = None

    modalities: Annotated[list[Literal["text"]] | None, only(["text"], why="only ['text'] is supported")] = None
    parallel_tool_calls: bool | None = None
    tool_choice: ToolChoice | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    function_call: Annotated[Literal["none", "auto"] | None, only("none", "auto", why=_USE_TOOLS)] = None
    functions: Annotated[_NoItems | None, only([], why=_USE_TOOLS)] = None

    prediction: HintValue = None
    prompt_cache_key: HintText = None
    prompt_cache_options: HintObject = None
    prompt_cache_retention: HintText = None
    reasoning: HintObject = None
    reasoning_effort: HintText = None
    safety_identifier: HintText = None
    service_tier: HintText = None
    store: HintFlag = None
    verbosity: HintText = None

    audio: NotSupported = None
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
            case JsonObjectFormat(value=wanted):
                return wanted or {"type": "object"}
            case JsonSchemaFormat(json_schema=wanted):
                return wanted.schema_
        return None

    @property
    def wants_scores(self) -> bool:
        """Whether the answer is to tell the score at each token of the prompt."""
        return self.guard is not None and bool(self.guard.scores)

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are reported beside each one's log-probability; None: not even that."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given. Not to store an answer is no hint: it is what is done."""
        yield from (name for name in super().ignored() if name != "store" or self.store)


def parse_chat_request(data: object) -> ChatCompletionRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    chat = parse(ChatCompletionRequest, data)
    check_least_tokens(chat)
    if chat.top_logprobs and not chat.logprobs:
        raise BadRequest("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    if chat.max_tokens is not None and chat.max_completion_tokens not in (None, chat.max_tokens):
        raise BadRequest(
            f"'max_tokens' ({chat.max_tokens}) and 'max_completion_tokens' ({chat.max_completion_tokens}) "
            "say different things; give one of them.",
            param="max_tokens",
        )
    return chat
