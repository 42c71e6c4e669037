"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.chat import ChatJob
from server.api.chat_request import ChatCompletionRequest
from server.api.objects import ChatCompletion, ChatCompletionChunk
from server.api.openapi import documented
from server.routes.exchange import exchange
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The chat route."""
    router = APIRouter()
    shapes = documented(ChatCompletion, body=ChatCompletionRequest, streamed=ChatCompletionChunk)

    @router.post("/v1/chat/completions", **shapes)
    async def chat_completions(http: HttpRequest) -> Response:
        return await exchange(service, http, ChatJob.of)

    return router
