"""`POST /tokenize`: the tokens of a prompt, images included, without generating."""

from __future__ import annotations

from functools import partial
from time import monotonic

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.answer import ignored_headers
from server.api.objects import Tokens
from server.api.openapi import documented
from server.api.tokens import TokenizeRequest, parse_tokenize_request, tokenized
from server.http.body import as_json
from server.http.streaming import unless_gone
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of counting tokens."""
    router = APIRouter()

    @router.post("/tokenize", **documented(Tokens, body=TokenizeRequest))
    async def tokenize(http: HttpRequest) -> Response:
        arrived, settings = monotonic(), service.settings
        with service.admission(http) as admission:
            wanted = await service.read(admission, http, parse_tokenize_request)
            if wanted.model is not None:
                service.check_model(wanted.model, "model")
            served = service.require_served()
            prepare = partial(tokenized, wanted, served, settings)
            deadline = Deadline.of(http, arrived, settings.request_seconds)
            work = service.prepared(admission, wanted.images(served, settings), prepare, deadline)
            found = await unless_gone(http.receive, work)
            return as_json(found, headers=ignored_headers({*wanted.ignored()}))

    return router
