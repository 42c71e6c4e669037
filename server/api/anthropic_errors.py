"""Errors in Anthropic's shape, on its routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.anthropic_objects import AnthropicError

ROUTE = "/v1/messages"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
TYPES_OF_CODES = {"deadline_exceeded": "timeout_error", "engine_failed": "api_error"}


def is_anthropic(path: str) -> bool:
    """Whether a path is one of Anthropic's API, under which errors have its shape."""
    return path == ROUTE or path.startswith(f"{ROUTE}/")


def anthropic_error(body: Mapping[str, Any], status: int, request_id: str | None) -> AnthropicError:
    """Anthropic's body of an error in OpenAI's shape; the message names the field, which has no place of its own."""
    error, message = body["error"], body["error"]["message"]
    if error["param"] is not None and error["param"] not in message:
        message = f"'{error['param']}': {message}"
    kind = TYPES_OF_CODES.get(error["code"]) or TYPES.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
