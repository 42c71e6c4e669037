"""The routes' part of `/openapi.json`: bodies, answers and errors, each by its exact schema."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from server.api.fields import Strict
from server.api.objects import ErrorObject

ERRORS = {
    400: "The request cannot be served as it stands.",
    401: "The key is missing or unknown.",
    403: "The key may not do this.",
    404: "Another model is served.",
    413: "The body is too large.",
    415: "The body is not JSON by its own account.",
    429: "Too many requests; come back after `Retry-After` seconds.",
    500: "This request failed; others go on.",
    503: "The model loads, has failed, or the server stops.",
}


def documented(
    answer: Any,  # noqa: ANN401  any type
    *,
    kind: str = "application/json",
    body: type[Strict] | None = None,
    streamed: Any = None,  # noqa: ANN401
    done: bool = True,
    error: Any = ErrorObject,  # noqa: ANN401
    parameter: str | None = None,
    query: type[Strict] | None = None,
    errors: Sequence[int] = (401, 404, 500, 503),
) -> dict[str, Any]:
    """Arguments of a route's decorator.

    `answer`, `streamed`, `error`: types of what it answers with, whole or by event; `done`: whether a stream ends with
    `[DONE]`. `parameter`: the one in its path; `query`: those of its query. `errors`: statuses that a route without a
    body may have.
    """
    content: dict[str, Any] = {kind: {"schema": _schema(answer)}}
    if streamed is not None:
        content["text/event-stream"] = {"itemSchema": _event(_schema(streamed), _schema(error), done=done)}
    statuses = ERRORS if body else {status: ERRORS[status] for status in errors}
    failures = {
        str(status): {"description": text, "content": {"application/json": {"schema": _schema(error)}}}
        for status, text in statuses.items()
    }
    extra: dict[str, Any] = {"responses": {"200": {"description": "The answer.", "content": content}, **failures}}
    if parameter is not None:
        place = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        extra["parameters"] = [place]
    if query is not None:
        fields = _body_schema(query)["properties"]
        extra["parameters"] = [{"name": name, "in": "query", "schema": field} for name, field in fields.items()]
    if body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _body_schema(body)}},
        }
    return {"openapi_extra": extra, "response_model": None}


def _event(data: Any, error: Any, *, done: bool) -> dict[str, Any]:  # noqa: ANN401
    """A server-sent event as OpenAPI 3.2 describes one, which earlier readers skip: a chunk, a failure, or the end."""
    content = {"anyOf": [data, error]}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    either = {"anyOf": [text, {"type": "string", "const": "[DONE]"}]}
    return {"type": "object", "properties": {"data": either if done else text}, "required": ["data"]}


# Once for each type in a process: most errors of all routes are of one, and every application has the same routes.


@cache
def _body_schema(kind: type[Strict]) -> Any:  # noqa: ANN401
    return _inlined(kind.model_json_schema())


@cache
def _schema(kind: Any) -> Any:  # noqa: ANN401
    return _inlined(TypeAdapter(kind).json_schema(mode="serialization"))


def _inlined(schema: Any) -> Any:  # noqa: ANN401
    """A JSON schema without references, which would have to be found from the root of the document."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):
            return [walk(each) for each in value]
        if not isinstance(value, dict):
            return value
        if (reference := value.get("$ref")) is not None:
            return walk(definitions[reference.removeprefix("#/$defs/")])
        # A discriminator maps to references; the constants of the alternatives say the same.
        return {key: walk(each) for key, each in value.items() if key != "discriminator"}

    return walk(schema)
