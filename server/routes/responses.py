"""`POST /v1/responses`, stateless."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.openapi import documented
from server.api.responses import ResponsesJob
from server.api.responses_objects import ResponseEvent, ResponseObject
from server.api.responses_request import ResponsesRequest
from server.routes.exchange import exchange
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of responses."""
    router = APIRouter()
    shapes = documented(ResponseObject, body=ResponsesRequest, streamed=ResponseEvent, done=False)

    @router.post("/v1/responses", **shapes)
    async def responses(http: HttpRequest) -> Response:
        return await exchange(service, http, ResponsesJob.of)

    return router
