"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.body import as_json
from server.responses import model_object
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes that say what is served."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        served = service.served
        return as_json({"object": "list", "data": [] if served is None else [model_object(served)]})

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        service.check_model(model, "model")
        if (served := service.served) is None:
            raise service.unavailable()
        return as_json(model_object(served))

    return router
