"""`POST /v1/completions`, the legacy route: text in, text out, guarded as a chat is."""

from __future__ import annotations

import secrets
from functools import partial
from time import monotonic

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.objects import Completion
from server.api.openapi import documented
from server.api.prepare import Intake, prepare_completion
from server.api.responses_text import CompletionAnswer
from server.api.schemas_text import CompletionRequest, parse_completion_request
from server.http.streaming import respond, unless_gone
from server.service import Service


def routes(service: Service) -> APIRouter:
    """The route of legacy completions."""
    router = APIRouter()

    @router.post("/v1/completions", **documented(Completion, body=CompletionRequest, streamed=Completion))
    async def completions(http: HttpRequest) -> Response:
        arrived = monotonic()
        with service.admission(http) as admission:
            completion = parse_completion_request(await service.body(http))
            service.check_model(completion.model, "model")
            served = service.require_served()
            policy = admission.policy(completion.guard, served)
            several = "prompt" if len(completion.prompts) > 1 else "n"
            admission.widen(len(completion.prompts) * completion.choices, several)
            intake = Intake(served, policy, service.settings, "cmpl-" + secrets.token_hex(16), arrived)
            prepare = partial(prepare_completion, completion, intake)
            deadline = Deadline.of(http, arrived, service.settings.request_seconds)
            work = service.accept(admission, {}, prepare, served, completion.stop or (), deadline)
            choices = await unless_gone(http.receive, work)
        answer = CompletionAnswer(intake.answer_id, choices, completion, served)
        return await respond(
            http,
            answer,
            stall_seconds=service.settings.stall_seconds,
            keep_alive_seconds=service.settings.keep_alive_seconds,
        )

    return router
