"""The routes of those who operate the server: `/health`, `/ready`, `/metrics`, `/version`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.objects import Status, Version
from server.api.openapi import documented
from server.http.body import as_json
from server.routes.authentication import client_of
from server.service import Service
from server.version import server_version
from server.watch.metrics import TEXT_FORMAT


def routes(service: Service) -> APIRouter:
    """The routes of operations."""
    router = APIRouter()

    @router.get("/health", **documented(Status))
    async def health() -> Response:
        return as_json({"status": "alive"})

    @router.get("/ready", **documented(Status))
    async def ready() -> Response:
        service.require_served()
        service.recorder.check()
        service.check_progress()
        return as_json({"status": "ready"})

    @router.get("/metrics", **documented(str, kind="text/plain"))
    async def metrics(http: HttpRequest) -> Response:
        if service.settings.metrics_key:
            client_of(service, http)
        return Response(service.metrics.render() + await service.engine.series(), media_type=TEXT_FORMAT)

    @router.get("/version", **documented(Version))
    async def version() -> Response:
        return as_json({"version": server_version()})

    return router
