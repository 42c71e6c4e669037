"""`POST /v1/moderations`: the guard's score of texts and images, from one prefill and no token."""

from __future__ import annotations

import secrets
from functools import partial
from time import monotonic

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.objects import ModerationsObject
from server.api.openapi import documented
from server.api.prepare import Intake, prepare_moderation
from server.api.prompts import Conversation
from server.api.responses_text import ModerationAnswer
from server.api.schemas import parse
from server.api.schemas_text import ModerationRequest
from server.errors import BadRequest
from server.http.streaming import respond_whole, unless_gone
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of moderations."""
    router = APIRouter()

    @router.post("/v1/moderations", **documented(ModerationsObject, body=ModerationRequest))
    async def moderations(http: HttpRequest) -> Response:
        arrived = monotonic()
        with service.admission(http) as admission:
            moderation = parse(ModerationRequest, await service.body(http))
            if moderation.model is not None:
                service.check_model(moderation.model, "model")
            served = service.require_served()
            if served.layer is None:
                raise BadRequest("This server has no guard, so nothing can be scored.", code="no_guard")
            admission.widen(len(moderation.inputs), "input")
            policy = admission.policy(None, served)
            intake = Intake(served, policy, service.settings, "modr-" + secrets.token_hex(16), arrived)
            images = {
                param: url
                for parts in moderation.inputs
                for param, url in Conversation.of_input(parts).image_urls(service.settings).items()
            }
            prepare = partial(prepare_moderation, moderation, intake)
            deadline = Deadline.of(http, arrived, service.settings.request_seconds)
            work = service.accept(admission, images, prepare, served, (), deadline)
            choices = await unless_gone(http.receive, work)
        return await respond_whole(http, ModerationAnswer(intake.answer_id, choices, served))

    return router
