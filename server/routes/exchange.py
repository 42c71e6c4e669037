"""What every route for answers, or for tokens, does with one HTTP request: read, admit, prepare, generate, respond."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from time import monotonic

from fastapi import Request as HttpRequest
from starlette.responses import Response

from server.answer.deadline import Deadline
from server.api.answer import Answer, ignored_headers
from server.api.job import Intake, Job
from server.api.languages import accepted
from server.api.tokens import Count
from server.http.body import as_json
from server.http.streaming import respond, unless_gone
from server.service import Service


async def exchange(service: Service, http: HttpRequest, job_of: Callable[[object], Job]) -> Response:
    """One request's answer; `job_of` validates its body. Raises ApiError, ClientGone."""
    settings = service.settings
    answer = await _accepted(service, http, job_of)
    return await respond(
        http, answer, stall_seconds=settings.stall_seconds, keep_alive_seconds=settings.keep_alive_seconds
    )


async def count(service: Service, http: HttpRequest, count_of: Callable[[object], Count]) -> Response:
    """The tokens of one request's prompt; `count_of` validates its body. Raises ApiError, ClientGone."""
    arrived, settings = monotonic(), service.settings
    with service.admission(http) as admission:
        asked = await service.read(admission, http, count_of)
        if asked.model is not None:
            service.check_model(asked.model, "model")
        served = service.require_served()
        deadline = Deadline.of(http, arrived, settings.request_seconds)
        prepare = partial(asked.counted, served, settings)
        work = service.prepared(admission, asked.images(served, settings), prepare, deadline)
        found = await unless_gone(http.receive, work)
        return as_json(found, headers=ignored_headers(asked.ignored_here(served)))


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
