"""`POST /tokenize`: the tokens of a prompt, images included, without generating."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.objects import Tokens
from server.api.openapi import documented
from server.api.tokens import TokenizeRequest, parse_tokenize_request
from server.routes.exchange import count
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of counting tokens."""
    router = APIRouter()

    @router.post("/tokenize", **documented(Tokens, body=TokenizeRequest))
    async def tokenize(http: HttpRequest) -> Response:
        return await count(service, http, parse_tokenize_request)

    return router
