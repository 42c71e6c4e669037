"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, in Anthropic's shape."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.anthropic import AnthropicCount, MessagesJob
from server.api.anthropic_errors import ROUTE
from server.api.anthropic_objects import AnthropicError, MessageEvent, MessageObject, TokensCount
from server.api.anthropic_request import CountRequest, MessagesRequest
from server.api.openapi import documented
from server.routes.exchange import count, exchange
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes of messages."""
    router = APIRouter()
    shapes = documented(MessageObject, body=MessagesRequest, streamed=MessageEvent, done=False, error=AnthropicError)

    @router.post(ROUTE, **shapes)
    async def messages(http: HttpRequest) -> Response:
        return await exchange(service, http, partial(MessagesJob.of, headers=http.headers))

    @router.post(f"{ROUTE}/count_tokens", **documented(TokensCount, body=CountRequest, error=AnthropicError))
    async def count_tokens(http: HttpRequest) -> Response:
        return await count(service, http, partial(AnthropicCount.of, headers=http.headers))

    return router
