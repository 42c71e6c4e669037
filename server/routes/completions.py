"""`POST /v1/completions`, the legacy route: text in, text out, guarded as a chat is."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.completion_request import CompletionRequest
from server.api.completions import CompletionJob
from server.api.objects import Completion
from server.api.openapi import documented
from server.routes.exchange import exchange
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of legacy completions."""
    router = APIRouter()

    @router.post("/v1/completions", **documented(Completion, body=CompletionRequest, streamed=Completion))
    async def completions(http: HttpRequest) -> Response:
        return await exchange(service, http, CompletionJob.of)

    return router
