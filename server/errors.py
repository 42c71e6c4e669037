"""What a client can be told, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

ApiError
├── BadRequest         400  invalid_request_error
│   └── ContextLengthExceeded
├── Unauthorized       401  invalid_request_error
├── Forbidden          403  permission_error
├── NotFound           404  invalid_request_error
├── BodyTooLarge       413  invalid_request_error
├── UnsupportedBody    415  invalid_request_error
├── TooManyRequests    429  rate_limit_error
├── RateLimited        429  rate_limit_error
│   └── ConcurrencyLimited
├── ServerFault        500  server_error
└── Unavailable        503  server_error
    ├── AuditUnavailable
    ├── BodiesFull
    └── DeadlineExceeded
"""

from __future__ import annotations

from typing import Any, ClassVar

SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """A value as it is repeated to the client: short, whatever its size."""
    if isinstance(value, str):
        value = value[: SHOWN_CHARACTERS + 1]
    elif isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    elif isinstance(value, dict):
        return f"an object of {len(value)} fields"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


class ApiError(Exception):
    """An answer that is an error; `reason` is its bounded label in the metrics."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    reason: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return error_body(self.message, self.type, self.param, self.code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class BadRequest(ApiError):
    """The request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"
    reason = "invalid_request"


class ContextLengthExceeded(BadRequest):
    """The prompt is longer than the model's context. Clients look for OpenAI's words, and then try another model."""

    reason = "context_length_exceeded"

    def __init__(self, context: int, however: str, *, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, {however}. "
            f"Please reduce the length of the {param}.",
            param=param,
            code="context_length_exceeded",
        )


class Unauthorized(ApiError):
    """No key, or none that is known; the message says nothing of what was sent."""

    status = 401
    type = "invalid_request_error"
    reason = "unauthorized"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


class Forbidden(ApiError):
    """The caller may not do this."""

    status = 403
    type = "permission_error"
    reason = "forbidden"


class NotFound(ApiError):
    """No such model or route."""

    status = 404
    type = "invalid_request_error"
    reason = "not_found"


class BodyTooLarge(ApiError):
    """The body passes the limit; it is not read to its end."""

    status = 413
    type = "invalid_request_error"
    reason = "body_too_large"


class UnsupportedBody(ApiError):
    """The body is not JSON by its own account."""

    status = 415
    type = "invalid_request_error"
    reason = "unsupported_body"


class TooManyRequests(ApiError):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    reason = "queue_full"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, code="queue_full", headers={"retry-after": str(retry_after)})


class RateLimited(ApiError):
    """The client's own limit is reached; `retry_after` in seconds, None where waiting cannot help."""

    status = 429
    type = "rate_limit_error"
    reason = "rate_limited"
    limit: ClassVar[str] = "rate_limit_exceeded"  # its code

    def __init__(self, message: str, *, retry_after: int | None) -> None:
        # The official clients read x-should-retry: a request over the whole limit is not worth a second try.
        headers = {"x-should-retry": "false"} if retry_after is None else {"retry-after": str(retry_after)}
        super().__init__(message, code=self.limit, headers=headers)


class ConcurrencyLimited(RateLimited):
    """The client has as much running as it may."""

    reason = "concurrency_limited"
    limit = "concurrency_limit_exceeded"


class ServerFault(ApiError):
    """The request failed through no fault of the client."""


class Unavailable(ApiError):
    """The model is loading, has failed, or the server is going down."""

    status = 503
    reason = "not_ready"


class AuditUnavailable(Unavailable):
    """Requests cannot be recorded, and so are not served."""

    reason = "audit_failed"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="audit_failed", headers={"retry-after": "1"})


class BodiesFull(Unavailable):
    """There is no memory for a body now. The rest of it is not read: the connection ends with the answer."""

    reason = "bodies_full"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bodies_full", headers={"retry-after": "1", "connection": "close"})


class DeadlineExceeded(Unavailable):
    """The request took longer than it may; trying again would take as long."""

    reason = "deadline_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="deadline_exceeded", headers={"x-should-retry": "false"})


class ClientGone(Exception):
    """The client closed the connection before its answer began; nobody is left to be told."""


def rejection_reasons() -> tuple[str, ...]:
    """Every `reason` that a request which is not accepted can be counted under."""
    found, left = {"client_gone", "internal_error"}, ApiError.__subclasses__()
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind is not ServerFault:
            found.add(kind.reason)
    return tuple(sorted(found))
