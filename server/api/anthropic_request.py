"""The bodies of `POST /v1/messages` and its `count_tokens`; a field is honoured, a hint, or refused with 400."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from server.api.answer_fields import GuardOptions, Sampling, Stops
from server.api.fields import (
    INT64,
    HintFlag,
    HintObject,
    HintText,
    HintValue,
    Integer,
    Label,
    NotSupported,
    Number,
    Positive,
    Strict,
    Text,
    only,
)
from server.api.messages import MAX_MESSAGES, MAX_PARTS
from server.api.tools import MAX_TOOLS, ChoiceWord, FunctionName, NamedFunction, NamedTool, Tool, tool_of

_EITHER = Discriminator(
    lambda value: "text" if isinstance(value, str) else "blocks" if isinstance(value, list) else None,
    custom_error_type="content",
    custom_error_message="must be a string or a list of content blocks",
)
_SIZE = Field(max_length=MAX_PARTS, fail_fast=True)


class _Block(Strict):
    cache_control: HintValue = None


class TextBlock(_Block):
    """Words."""

    type: Literal["text"]
    text: Text
    citations: HintValue = None


class Base64Source(Strict):
    """An image's file in base64."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp"]
    data: str


class UrlSource(Strict):
    """Where an image is; `server.media.files` says what is accepted."""

    type: Literal["url"]
    url: str


class ImageBlock(_Block):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    transformations: HintValue = None


_TextBlocks = Annotated[list[Annotated[TextBlock, Field()]], _SIZE]
_Words = Annotated[Annotated[Text, Tag("text")] | Annotated[_TextBlocks, Tag("blocks")], _EITHER]


class ToolResultBlock(_Block):
    """What a call returned; that it is an error is for its words to say."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: _Words | None = None
    is_error: HintFlag = None


class ToolUseBlock(_Block):
    """An earlier call of a tool."""

    type: Literal["tool_use"]
    id: Label
    name: FunctionName
    input: dict[str, JsonValue]
    caller: HintValue = None
    toolset_name: NotSupported = None


class ThinkingBlock(Strict):
    """What an earlier answer thought; no prompt has it."""

    type: Literal["thinking"]
    thinking: HintValue = None
    signature: HintValue = None


class RedactedThinkingBlock(Strict):
    """What an earlier answer thought, encrypted; no prompt has it."""

    type: Literal["redacted_thinking"]
    data: HintValue = None


_UserBlock = Annotated[TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type")]
_AssistantBlock = Annotated[
    TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


class UserTurn(Strict):
    """What the user says and shows, and what tools returned."""

    role: Literal["user"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[list[_UserBlock], Field(min_length=1), _SIZE, Tag("blocks")], _EITHER
    ]


class AssistantTurn(Strict):
    """An earlier answer, as the client's own objects have it."""

    role: Literal["assistant"]
    content: Annotated[Annotated[Text, Tag("text")] | Annotated[list[_AssistantBlock], _SIZE, Tag("blocks")], _EITHER]


class SystemTurn(Strict):
    """Instructions within a conversation."""

    role: Literal["system"]
    content: _Words


AnyTurn = UserTurn | AssistantTurn | SystemTurn


class ClientTool(_Block):
    """A tool that the client runs; a call follows `input_schema`, whether or not `strict` is asked for."""

    type: Annotated[Literal["custom"] | None, only("custom", why="this server has no tools of its own")] = None
    name: FunctionName
    description: Text | None = None
    input_schema: dict[str, JsonValue]
    strict: bool | None = None
    input_examples: HintValue = None
    eager_input_streaming: HintFlag = None
    defer_loading: Annotated[Literal[False] | None, only(False, why="no tool is searched for")] = None
    allowed_callers: Annotated[Any, only(["direct"], why="tools are called by the model alone")] = None


class _Choice(Strict):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_Choice):
    """To call a tool or not is up to the model."""

    type: Literal["auto"]


class AnyChoice(_Choice):
    """The answer is a call of one of the tools."""

    type: Literal["any"]


class OneChoice(_Choice):
    """The answer is a call of this tool."""

    type: Literal["tool"]
    name: FunctionName


class NoChoice(Strict):
    """No tool is called."""

    type: Literal["none"]


class JsonFormat(Strict):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]


class OutputConfig(Strict):
    """What the answer's text is."""

    format: JsonFormat | None = None
    effort: HintText = None


class CountRequest(Strict):
    """The body of `POST /v1/messages/count_tokens`: all that a prompt is made of."""

    model: str
    messages: Annotated[
        list[Annotated[AnyTurn, Field(discriminator="role")]],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    ]
    system: _Words | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[AutoChoice | AnyChoice | OneChoice | NoChoice, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None

    cache_control: HintValue = None
    speed: HintText = None
    thinking: HintObject = None

    context_management: NotSupported = None
    mcp_servers: NotSupported = None

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given. Not to think is no hint: it is what is done."""
        thinks = self.thinking is not None and self.thinking.get("type") != "disabled"
        yield from (name for name in super().ignored() if name != "thinking" or thinks)

    @property
    def chat_tools(self) -> list[Tool]:
        """The tools as a chat has them."""
        return [tool_of(tool.name, tool.description, tool.input_schema, tool.strict) for tool in self.tools or ()]

    @property
    def parallel(self) -> bool | None:
        """Whether there may be several calls, where that is said."""
        single = getattr(self.tool_choice, "disable_parallel_tool_use", None)
        return None if single is None else not single

    @property
    def answer_schema(self) -> dict[str, JsonValue] | None:
        """The JSON schema that the answer satisfies, if any."""
        wanted = None if self.output_config is None else self.output_config.format
        return None if wanted is None else wanted.schema_

    @property
    def chat_choice(self) -> ChoiceWord | NamedTool | None:
        """The choice of tools as a chat has it."""
        match self.tool_choice:
            case OneChoice(name=name):
                return NamedTool(type="function", function=NamedFunction(name=name))
            case AnyChoice():
                return "required"
            case AutoChoice():
                return "auto"
            case NoChoice():
                return "none"
        return None


class MessagesRequest(CountRequest):
    """The body of `POST /v1/messages`."""

    max_tokens: Positive
    stop_sequences: Stops = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=0, lt=INT64)] | None = None
    stream: bool | None = None
    guard: GuardOptions | None = None

    diagnostics: HintObject = None
    metadata: HintObject = None
    service_tier: HintText = None

    container: NotSupported = None
    inference_geo: NotSupported = None

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return Sampling(
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )
