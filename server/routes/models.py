"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.api.objects import Model, ModelList
from server.api.openapi import documented
from server.api.served import Served
from server.http.body import as_json
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The routes that say what is served."""
    router = APIRouter()

    @router.get("/v1/models", **documented(ModelList))
    async def models() -> Response:
        served = service.served
        data = [] if served is None else [model_object(served, name) for name in service.names]
        return as_json({"object": "list", "data": data})

    @router.get("/v1/models/{model:path}", **documented(Model, parameter="model"))
    async def model(http: HttpRequest) -> Response:
        name = http.path_params["model"]
        service.check_model(name, "model")
        if (served := service.served) is None:
            raise service.unavailable()
        return as_json(model_object(served, name))

    return router


def model_object(served: Served, name: str) -> Model:
    """OpenAI's `model` object by one of its names, with the context length as others give it, and the guard bundle."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "autosteer",
        "max_model_len": served.info.context_length,
        "guard": None if served.guard is None else {"id": served.guard.id, "date": served.guard.date},
    }
