"""What `/v1/messages` answers with, as types that the code is checked against and `/openapi.json` made of."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded"
]  # fmt: skip


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ToolUseBlock


class StopDetails(TypedDict):
    type: Literal["refusal"]
    category: None
    explanation: None


class Usage(TypedDict):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageObject(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: StopDetails | None
    usage: Usage


class MessageEvent(TypedDict):
    type: str


class TokensCount(TypedDict):
    input_tokens: int


class ErrorDetails(TypedDict):
    type: str
    message: str


class AnthropicError(TypedDict):
    type: Literal["error"]
    error: ErrorDetails
    request_id: str | None
