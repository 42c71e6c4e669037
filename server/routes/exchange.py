"""What every route for answers does with one HTTP request: read, admit, prepare, generate, respond."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import monotonic

from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.answer import Answer
from server.api.job import Intake, Job
from server.api.languages import accepted
from server.http.streaming import respond, unless_gone
from server.service import Service


async def exchange(service: Service, http: HttpRequest, job_of: Callable[[object], Job]) -> Response:
    """One request's answer; `job_of` validates its body. Raises ApiError, ClientGone."""
    settings = service.settings
    answer = await _accepted(service, http, job_of)
    return await respond(
        http, answer, stall_seconds=settings.stall_seconds, keep_alive_seconds=settings.keep_alive_seconds
    )


async def _accepted(service: Service, http: HttpRequest, job_of: Callable[[object], Job]) -> Answer:
    """The answer of a request that the engine has; of the job, with its texts and images, nothing else is left."""
    arrived, settings = monotonic(), service.settings
    with service.admission(http) as admission:
        job = await service.read(admission, http, job_of)
        for param, model in job.models.items():
            service.check_model(model, param)
        served = service.require_served()
        policy = admission.policy(job.guard, served)
        admission.widen(*job.places)
        answer_id = job.prefix + secrets.token_hex(16)
        languages = accepted(http.headers.get("accept-language"))
        intake = Intake(
            served, admission.terms, policy, settings, answer_id, arrived, admission.tenant, languages=languages
        )
        job.check(intake)
        deadline = Deadline.of(http, arrived, settings.request_seconds)
        choices = await unless_gone(http.receive, service.accept(admission, job, intake, deadline))
        return job.answer(intake, choices)
