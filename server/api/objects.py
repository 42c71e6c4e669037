"""What the routes answer with, as types: the code is checked against them, and `/openapi.json` is made of them."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


class PromptTokensDetails(TypedDict):
    cached_tokens: int
    image_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


# moderations -------------------------------------------------------------------------------------------------------

InputType = Literal["text", "image"]


class ModerationResult(TypedDict):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[InputType]]


class ModerationsObject(TypedDict):
    id: str
    model: str
    results: list[ModerationResult]


class ChatModerationResult(ModerationResult):
    type: Literal["moderation_result"]
    model: str


class ChatModerationResults(TypedDict):
    type: Literal["moderation_results"]
    model: str
    results: list[ChatModerationResult]


class ChatModerationError(TypedDict):
    type: Literal["error"]
    code: str
    message: str


class ChatModeration(TypedDict):
    input: ChatModerationResults | ChatModerationError
    output: ChatModerationResults | ChatModerationError


# what the guard saw -----------------------------------------------------------------------------------------------


class ImageTokens(TypedDict):
    begin: int
    end: int
    side: int | None


class PromptScores(TypedDict):
    tokens: list[str]
    scores: list[float | None]
    ends: list[int]
    counted: list[list[int]]
    images: list[ImageTokens]


class AnswerTokenScore(TypedDict):
    token: str
    score: float | None


class TokenScoresObject(TypedDict):
    mode: Literal["off", "monitor", "steer", "block"]
    threshold: float
    answer_threshold: float | None
    prompt: PromptScores | None


# chat --------------------------------------------------------------------------------------------------------------


class OneLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(OneLogprob):
    top_logprobs: list[OneLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class ChatFunction(TypedDict):
    name: str
    arguments: str


class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: ChatFunction


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_scores: NotRequired[list[AnswerTokenScore]]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    metadata: NotRequired[dict[str, str]]
    moderation: NotRequired[ChatModeration]
    token_scores: NotRequired[TokenScoresObject]


class ChatFunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ChatToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: ChatFunctionDelta


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ChatToolCallDelta]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_scores: NotRequired[list[AnswerTokenScore]]
    held: NotRequired[int]


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    moderation: NotRequired[ChatModeration]
    token_scores: NotRequired[TokenScoresObject]


# completions -------------------------------------------------------------------------------------------------------


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


# the others --------------------------------------------------------------------------------------------------------


class Tokens(TypedDict):
    count: int
    max_model_len: int
    image_tokens: int
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class GuardBundle(TypedDict):
    id: str
    date: str


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    guard: GuardBundle | None


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Status(TypedDict):
    status: Literal["alive", "ready"]


class Version(TypedDict):
    version: str


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(TypedDict):
    error: ErrorDetails
