"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
from functools import partial
from time import monotonic

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.objects import ChatCompletion, ChatCompletionChunk
from server.api.openapi import documented
from server.api.prepare import Intake, prepare_chat
from server.api.prompts import Conversation
from server.api.responses import ChatAnswer
from server.api.schemas import ChatCompletionRequest, parse_chat_request
from server.http.streaming import respond, unless_gone
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The chat route."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        **documented(ChatCompletion, body=ChatCompletionRequest, streamed=ChatCompletionChunk),
    )
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
            intake = Intake(served, policy, service.settings, "chatcmpl-" + secrets.token_hex(16), arrived)
            images = Conversation(chat.messages).image_urls(service.settings)
            deadline = Deadline.of(http, arrived, service.settings.request_seconds)
            work = service.accept(
                admission, images, partial(prepare_chat, chat, intake), served, chat.stop or (), deadline
            )
            choices = await unless_gone(http.receive, work)
        answer = ChatAnswer(intake.answer_id, choices, chat, served)
        return await respond(
            http,
            answer,
            stall_seconds=service.settings.stall_seconds,
            keep_alive_seconds=service.settings.keep_alive_seconds,
        )

    return router
