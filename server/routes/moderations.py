"""`POST /v1/moderations`: the guard's score of texts and images, from one prefill and no token."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.moderations import ModerationJob, ModerationRequest
from server.api.objects import ModerationsObject
from server.api.openapi import documented
from server.routes.exchange import exchange
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of moderations."""
    router = APIRouter()

    @router.post("/v1/moderations", **documented(ModerationsObject, body=ModerationRequest))
    async def moderations(http: HttpRequest) -> Response:
        return await exchange(service, http, ModerationJob.of)

    return router
