"""A call that has ended -> its audit record."""

from __future__ import annotations

from time import monotonic
from typing import Any

import orjson

from server.answer.choices import Choices
from server.answer.generation import Generation
from server.api.served import Judge
from server.errors import Unavailable
from server.record.audit.record import AuditRecord, Outcome
from server.record.call import Call
from server.request import Finish, Request
from steering.policy import Decision, Mode, Policy, Verdict


def record_of(call: Call, *, judge: Judge | None, content: bool) -> AuditRecord:
    """What is kept of a call. `content`: whether messages and answers are kept too."""
    assert call.route is not None
    facts: dict[str, Any] = {}
    if call.client is not None:
        facts |= {"key": call.client.name, "policy": call.client.policy}
    if call.policy is not None:
        facts |= _judged_by(call.policy)
    if call.choices is not None:
        facts |= _facts(call.choices, judge)
    if content:
        facts["content"] = None if call.content is None else call.content.decode()
        if call.choices is not None:
            facts["answer"] = orjson.dumps(["".join(each.kept or ()) for each in call.choices.generations]).decode()
    outcome, reason = _outcome(call)
    return AuditRecord(
        time=call.time,
        request_id=call.id,
        record_id=call.record_id,
        route=call.route,
        outcome=outcome,
        reason=reason,
        status=call.status,
        content_hash=call.content_hash,
        total_seconds=monotonic() - call.arrived,
        **facts,
    )


def _outcome(call: Call) -> tuple[Outcome, str | None]:
    failure = call.error or (call.choices.failure if call.choices else None)
    if failure is not None:
        refused = call.choices is None and (failure.status < 500 or isinstance(failure, Unavailable))
        return Outcome.REJECTED if refused else Outcome.FAILED, failure.code or failure.reason
    if call.gone or call.status is None or (call.choices and call.choices.outcome in (None, Finish.ABORT)):
        return Outcome.DISCONNECTED, None
    return Outcome.COMPLETED, None


def _facts(choices: Choices, judge: Judge | None) -> dict[str, Any]:
    """Of several prompts, the one with the highest score stands for all."""
    prompts = [generation.request for generation in choices.leaders]
    first = max(prompts, key=_score)
    timings, decision, shadow = first.timings, first.decision, first.shadow
    first_token = min((each.timings.first_token for each in prompts if each.timings.first_token), default=None)
    image_tokens = sum(each.prompt.image_tokens for each in prompts)
    return {
        **_judged_by(first.policy),
        "finish": choices.outcome,
        "decision": None if decision is None else decision.verdict.value,
        "score": None if decision is None else decision.score,
        **_categories(decision),
        **(judge._asdict() if judge is not None and decision is not None and decision.score is not None else {}),
        **_watched(choices),
        "shadow": None if shadow is None else shadow.shadow,
        "shadow_decision": None if shadow is None else shadow.verdict.value,
        "shadow_score": None if shadow is None else shadow.score,
        **_shadowed(choices),
        "modality": "image" if image_tokens else "text",
        "prompt_tokens": sum(len(each.prompt.ids) for each in prompts),
        "image_tokens": image_tokens,
        "completion_tokens": choices.tokens,
        "queue_seconds": None if timings.scheduled is None else timings.scheduled - timings.arrived,
        "first_token_seconds": None if first_token is None else first_token - timings.arrived,
        "guard_seconds": timings.guard_seconds,
    }


def _categories(decision: Decision | None) -> dict[str, str]:
    if decision is None or not decision.categories:
        return {}
    scores = {each.name: each.score for each in decision.categories}
    return {"categories": orjson.dumps(decision.kinds).decode(), "category_scores": orjson.dumps(scores).decode()}


def _watched(choices: Choices) -> dict[str, Any]:
    """Of several answers, the one that fared worst stands for all; of those that nothing reads, why it fell back."""
    mode = choices.generations[0].request.policy.output.mode
    worst = max(choices.generations, key=_answer_score)
    answer, reason = worst.request.answer, worst.fallback
    if mode is Mode.OFF:
        return {} if reason is None else {"answer_reason": reason.value}
    verdict = Verdict.BLOCKED if reason is not None else None if answer is None else answer.verdict
    return {
        "answer_mode": mode.value,
        "answer_decision": None if verdict is None else verdict.value,
        "answer_score": None if answer is None else answer.score,
        "answer_reason": None if reason is None else reason.value,
    }


def _shadowed(choices: Choices) -> dict[str, Any]:
    """Of several answers that a shadow has judged, the one with the highest score stands for all."""
    judged = [each.request.shadow_answer for each in choices.generations if each.request.shadow_answer is not None]
    if not judged:
        return {}
    worst = max(judged, key=lambda answer: answer.score)
    return {"shadow_answer_decision": worst.verdict.value, "shadow_answer_score": worst.score}


def _answer_score(generation: Generation) -> tuple[bool, float]:
    answer = generation.request.answer
    return generation.fallback is not None, -1.0 if answer is None else answer.score


def _judged_by(policy: Policy) -> dict[str, Any]:
    return {"mode": policy.mode.value, "threshold": policy.threshold, "eps": policy.eps}


def _score(request: Request) -> float:
    decision = request.decision
    return -1.0 if decision is None or decision.score is None else decision.score
