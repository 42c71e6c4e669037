"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
from functools import partial
from time import monotonic
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.deadline import Deadline
from server.prepare import image_urls, prepare_chat
from server.responses import ChatAnswer
from server.schemas import ChatCompletionRequest, parse_chat_request
from server.service import Service
from server.streaming import respond, unless_gone


def routes(service: Service) -> APIRouter:
    """The chat route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=_request_body())
    async def chat_completions(http: HttpRequest) -> Response:
        arrived = monotonic()
        with service.admission(http) as admission:
            chat = parse_chat_request(await service.body(http))
            service.check_model(chat.model, "model")
            if chat.moderation is not None:
                service.check_model(chat.moderation.model, "moderation.model")
            served = service.require_served()
            policy = admission.policy(chat.guard, served)
            admission.widen(chat.choices, "n")
            answer_id = "chatcmpl-" + secrets.token_hex(16)
            prepare = partial(prepare_chat, chat, served, policy, service.settings, answer_id, arrived)
            images = image_urls(chat, service.settings)
            deadline = Deadline.of(http, arrived, service.settings.request_seconds)
            work = service.accept(admission, images, prepare, served, chat.stop or (), deadline)
            choices = await unless_gone(http.receive, work)
        answer = ChatAnswer(answer_id, choices, chat, served)
        return await respond(
            http,
            answer,
            stall_seconds=service.settings.stall_seconds,
            keep_alive_seconds=service.settings.keep_alive_seconds,
        )

    return router


def _request_body() -> dict[str, Any]:
    """The chat request's part of `/openapi.json`; its references are from the root of that document."""
    place = "#/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema/$defs/{model}"
    schema = ChatCompletionRequest.model_json_schema(ref_template=place)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
