"""OpenAI's chat completion request. A field is honoured or refused: none is silently ignored.

`null` for a field that is not supported counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, LiteralString, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.errors import BadRequest, shown

MAX_FIELDS = 128
MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1024
MAX_BIASES = 1024
MAX_METADATA = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_EPS = 100.0
INT64 = 2**63


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "the text must not hold the character U+0000")
    return text


def _not_supported(why: LiteralString) -> Callable[[JsonValue], None]:
    def check(value: JsonValue) -> None:
        if value is not None:
            raise PydanticCustomError("not_supported", why)

    return check


def _only(*allowed: JsonValue, why: LiteralString) -> BeforeValidator:
    """Accept null and the given values alone: those that ask for nothing this server cannot do."""

    def check(value: JsonValue) -> JsonValue:
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            return value
        raise PydanticCustomError("not_supported", why)

    return BeforeValidator(check)


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("number", "must be a number")
    return value


_NO_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}
Text = Annotated[str, AfterValidator(_no_nul), Field(json_schema_extra=_NO_NUL)]
Label = Annotated[str, Field(max_length=512, json_schema_extra=_NO_NUL), AfterValidator(_no_nul)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$"), AfterValidator(_no_nul)]
Positive = Annotated[int, Field(ge=1, lt=INT64)]
NotSupported = Annotated[None, BeforeValidator(_not_supported("this server does not support it; leave it out"))]


Body = TypeVar("Body", bound="Strict")


class Strict(BaseModel):
    """Unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:  # noqa: ANN401  JSON of any shape
        # An object of a million unknown fields would be a million errors.
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("fields", f"an object here has at most {MAX_FIELDS} fields")
        return data


# messages ----------------------------------------------------------------------------------------------------------


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


# options -----------------------------------------------------------------------------------------------------------


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Literal[False] | None, _only(False, why="obfuscation is not supported")] = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema that the answer satisfies, whether or not `strict` is asked for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None
    description: Annotated[
        None, BeforeValidator(_not_supported("nothing would read it; tell the model in a message"))
    ] = None


class JsonSchemaFormat(Strict):
    """JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


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


def _stops(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(value) > MAX_STOPS:
        raise PydanticCustomError("stop", f"at most {MAX_STOPS} stop strings are allowed, not {len(value)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in value):
        raise PydanticCustomError("stop", f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
    return value


def _biases(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object of token id -> bias")
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("logit_bias", f"at most {MAX_BIASES} biases are allowed, not {len(value)}")
    for token, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise PydanticCustomError("logit_bias", "the key {key} is not a token id", {"key": shown(token)})
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias",
                "the bias of token {key} must be a number from -100 to 100, not {bias}",
                {"key": token, "bias": shown(bias)},
            )
    return {int(token): float(bias) for token, bias in value.items()}


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


# What these check, for `/openapi.json`.
_STOP_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS, **_NO_NUL}
_STOPS_SCHEMA = WithJsonSchema(
    {"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS}, {"type": "null"}]}
)
_BIASES_SCHEMA = WithJsonSchema(
    {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_BIASES,
    }
)
_METADATA_SCHEMA = WithJsonSchema(
    {
        "type": ["object", "null"],
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512, **_NO_NUL},
        "maxProperties": MAX_METADATA,
    }
)


def _unless_null(check: Any) -> BeforeValidator:  # noqa: ANN401  any validator
    return BeforeValidator(lambda value: None if value is None else check(value))


class GuardOptions(Strict):
    """What one request wants its guard to be; an extension. What is left out is as the policy says."""

    mode: Literal["off", "monitor", "steer", "block"] | None = None
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    target_fpr: Annotated[Number, Field(gt=0, lt=1)] | None = None
    eps: Annotated[Number, Field(gt=0, le=MAX_EPS)] | None = None


class AnswerFields(Strict):
    """What every request for an answer has: how its tokens are chosen, where it ends, how it is sent."""

    model: str

    max_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float] | None, _unless_null(_biases), _BIASES_SCHEMA] = None
    stop: Annotated[list[Text] | None, _unless_null(_stops), _STOPS_SCHEMA] = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guard: GuardOptions | None = None
    user: Label | None = None

    @property
    def limit(self) -> tuple[str, int] | None:
        """Name and value of the field that limits the answer."""
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are reported beside each one's log-probability; None: not even that."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatCompletionRequest(AnswerFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]

    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    moderation: Moderation | None = None
    safety_identifier: Label | None = None
    metadata: Annotated[dict[str, Text] | None, _unless_null(_metadata), _METADATA_SCHEMA] = None

    modalities: Annotated[list[Literal["text"]] | None, _only(["text"], why="only ['text'] is supported")] = None
    store: Annotated[Literal[False] | None, _only(False, why="answers are not stored")] = None

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


# parsing -----------------------------------------------------------------------------------------------------------


PLAINER = {
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
}


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


def check_stream_options(answer: AnswerFields) -> None:
    """Raise BadRequest for options of a stream that is none."""
    if answer.stream_options is not None and not answer.stream:
        raise BadRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")


def parse(kind: type[Body], data: object) -> Body:
    """A decoded JSON body as one of its kind; raises BadRequest naming the first field that is wrong."""
    if not isinstance(data, dict):
        raise BadRequest(f"The body must be a JSON object, not {shown(data)}.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _bad_field(data, error) from None


def _bad_field(data: Mapping[str, Any], error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    param = ".".join(_path(data, first["loc"], missing=kind == "missing"))
    match kind:
        case "missing":
            message = f"Missing required field '{param}'."
        case "extra_forbidden":
            message = f"Unknown field '{param[:200]}'."
        case "union_tag_invalid" | "union_tag_not_found":
            field = first["ctx"]["discriminator"].strip("'")
            param = f"{param}.{field}"
            known = first["ctx"].get("expected_tags")
            value = first["input"].get(field) if isinstance(first["input"], dict) else None
            message = (
                f"Invalid value for '{param}': {shown(value)}; expected one of {known}."
                if known
                else f"Missing required field '{param}'."
            )
        case _:
            message = f"Invalid value for '{param}': {PLAINER.get(kind, first['msg'])}; got {shown(first['input'])}."
    return BadRequest(message, param=param[:200])


def _path(data: object, location: Sequence[str | int], *, missing: bool) -> Iterator[str]:
    """The keys of a pydantic location that are the client's; tags of unions are ours."""
    in_list = False
    for number, key in enumerate(location):
        last = number == len(location) - 1
        if in_list and not last and isinstance(data, dict) and key in (data.get("role"), data.get("type")):
            in_list = False  # the tag of a message or a part; a part may also hold a field of that name
        elif (isinstance(data, list) and isinstance(key, int) and key < len(data)) or (
            isinstance(data, dict) and key in data
        ):
            in_list = isinstance(data, list)
            data = data[key]  # type: ignore[index]
            yield str(key)
        elif missing and last:
            yield str(key)
