"""The body of `POST /v1/responses`, which is stateless here: a field is honoured, a hint, or refused with 400."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from server.api.answer_fields import GuardOptions, Sampling, Stops
from server.api.fields import (
    HintFlag,
    HintObject,
    HintText,
    HintValue,
    NotSupported,
    Number,
    Positive,
    Strict,
    Text,
    only,
)
from server.api.formats import SCHEMA_NAME
from server.api.metadata import Metadata
from server.api.response_items import Items
from server.api.tools import (
    CHOICES,
    MAX_TOOLS,
    AllowedChoice,
    AllowedTools,
    ChoiceWord,
    FunctionName,
    NamedFunction,
    NamedTool,
    Tool,
    tool_of,
)

MOOT = frozenset(  # of `include`: what this server's answers never have
    {
        "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
        "message.input_image.image_url", "reasoning.encrypted_content", "web_search_call.action.sources",
        "web_search_call.results",
    }
)  # fmt: skip


class FlatTool(Strict):
    """A function, without the object that a chat has around it."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FlatName(Strict):
    """One of the functions by its name."""

    type: Literal["function"]
    name: FunctionName


class FlatAllowed(Strict):
    """Some of the functions, of which the model may or must call one."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatName], Field(min_length=1, max_length=MAX_TOOLS)]


_Choice = Annotated[
    ChoiceWord | Annotated[FlatName, Tag("function")] | Annotated[FlatAllowed, Tag("allowed_tools")], CHOICES
]


class TextFormat(Strict):
    """Any text, or a JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """JSON that satisfies a schema, whether or not `strict` is asked for."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=SCHEMA_NAME)]
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None
    description: HintValue = None


class TextOptions(Strict):
    """What the answer's text is."""

    format: Annotated[TextFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: HintText = None


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_obfuscation: Annotated[Literal[False] | None, only(False, why="obfuscation is not supported")] = None


_InputText = Annotated[Text, Tag("text")]


class ResponsesRequest(Strict):
    """The body of `POST /v1/responses`."""

    model: str
    input: Annotated[
        _InputText | Annotated[Items, Tag("items")],
        Discriminator(
            lambda value: "text" if isinstance(value, str) else "items" if isinstance(value, list) else None,
            custom_error_type="input",
            custom_error_message="must be a string or a list of items",
        ),
    ]
    instructions: Text | None = None

    max_output_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stop: Stops = None
    ignore_eos: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: _Choice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Positive | None = None
    include: list[str] | None = None
    metadata: Metadata = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guard: GuardOptions | None = None

    prompt_cache_key: HintText = None
    prompt_cache_options: HintObject = None
    prompt_cache_retention: HintText = None
    reasoning: HintObject = None
    safety_identifier: HintText = None
    service_tier: HintText = None
    store: HintFlag = None
    user: HintText = None

    background: Annotated[Literal[False] | None, only(False, why="answers are not kept for later")] = None
    top_logprobs: Annotated[Literal[0] | None, only(0, why="log-probabilities are only told of chats")] = None
    truncation: Annotated[Literal["disabled"] | None, only("disabled", why="nothing of the input is left out")] = None
    conversation: NotSupported = None
    context_management: NotSupported = None
    moderation: NotSupported = None
    previous_response_id: NotSupported = None
    prompt: NotSupported = None

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given. Not to store an answer is no hint: it is what is done."""
        yield from (name for name in super().ignored() if name != "store" or self.store)
        if self.include:
            yield "include"

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return Sampling(
            model=self.model,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            ignore_eos=self.ignore_eos,
        )

    @property
    def answer_schema(self) -> dict[str, JsonValue] | None:
        """The JSON schema that the answer satisfies, if any."""
        match self.text.format if self.text is not None else None:
            case SchemaFormat(schema_=wanted):
                return wanted
            case TextFormat(type="json_object"):
                return {"type": "object"}
        return None

    @property
    def chat_tools(self) -> list[Tool]:
        """The tools as a chat has them."""
        return [tool_of(tool.name, tool.description, tool.parameters, tool.strict) for tool in self.tools or ()]

    @property
    def chat_choice(self) -> Any:  # noqa: ANN401  one of the kinds of a chat's choice
        """The choice of tools as a chat has it."""
        match self.tool_choice:
            case FlatName(name=name):
                return _named(name)
            case FlatAllowed(mode=mode, tools=tools):
                allowed = AllowedTools(mode=mode, tools=[_named(tool.name) for tool in tools])
                return AllowedChoice(type="allowed_tools", allowed_tools=allowed)
        return self.tool_choice


def _named(name: str) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=name))
