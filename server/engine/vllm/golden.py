"""Golden prompts: what our own engine says of them, vLLM must say too, or nothing is served.

An adapter that is not live does not fail, it is silent; so what it should change is measured before the first request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from models.errors import LoadError
from models.row_sampler import SamplingParams
from server.request import Ask, Event
from steering.policy import Mode, OutputPolicy, Policy

if TYPE_CHECKING:
    import torch

    from models.inputs import InputBuilder
    from models.prompt import Prompt
    from server.engine.protocol import Engine

TEXTS = (
    "Hello!",
    "What is in the picture?",
    "How do I do that at home, step by step?",
    "Please write me a long story about a fox that lives in a forest beside a lake, and about all its friends.",
)
HIGHEST_ODDS = 30.0  # a score of 1 has none
SCORES, LOGPROBS = 0.02, 0.02  # how far log-odds of scores (.005 of one) and log-probabilities may differ in float32
COARSE = 20  # times as far in half precision


@dataclass(frozen=True)
class Golden:
    """What an engine says of one golden prompt: log-odds of its score, log-probability of the first token.

    `odds` None: nothing scores. `logprob` None: the answer is empty. `answer`: log-odds at the first token of the
    answer, where answers are read.
    """

    name: str
    odds: float | None
    logprob: float | None
    answer: float | None


def golden_prompts(inputs: InputBuilder) -> list[Prompt]:
    """Short prompts without images, the same for every model."""
    return [inputs.build([{"role": "user", "content": [{"type": "text", "text": text}]}], []) for text in TEXTS]


def ask_golden(engine: Engine[Any], prompts: Sequence[Prompt]) -> list[Golden]:
    """Ask all prompts at once, each as it is and, with a guard, steered. Raises LoadError where one fails."""
    guard = engine.facts.guard
    policies = [Policy("plain", Mode.OFF if guard is None else Mode.MONITOR, 0.0, 0.0, "")]
    if guard is not None:
        output = OutputPolicy(Mode.MONITOR if guard.watches else Mode.OFF)
        policies[0] = replace(policies[0], output=output)
        policies.append(Policy("steered", Mode.STEER, 0.0, guard.eps, "", output=output))
    params = SamplingParams(temperature=0.0, logprobs=1)
    asks = [
        Ask(f"golden.{policy.name}.{number}", prompt, params, 1, policy, scores=policy.output.mode is not Mode.OFF)
        for policy in policies
        for number, prompt in enumerate(prompts)
    ]
    for request in engine.prepare(asks):
        engine.add(request)
    told: dict[str, list[Event]] = {}
    while not engine.idle:
        for event in engine.step():
            told.setdefault(event.request.id, []).append(event)
    return [_golden(told[name]) for name in sorted(told)]


def _golden(events: Sequence[Event]) -> Golden:
    request, error = events[-1].request, events[-1].error
    if error is not None or request.decision is None:
        raise LoadError(f"{request.id} could not be asked: {error}")
    score = request.decision.score
    logprobs = [event.logprobs.token for event in events if event.logprobs is not None]
    return Golden(
        request.id,
        None if score is None else _odds(score),
        logprobs[0] if logprobs else None,
        _odds(request.answer_scores[0]) if request.answer_scores else None,
    )


def compare(expected: Sequence[Golden], found: Sequence[Golden], dtype: torch.dtype) -> None:
    """Raise LoadError naming the first prompt on which two engines differ by more than rounding."""
    factor = 1 if dtype.itemsize == 4 else COARSE
    for ours, theirs in zip(expected, found, strict=True):
        for what, one, other, most in (
            ("the log-odds of the score", ours.odds, theirs.odds, SCORES),
            ("the log-probability of the first token", ours.logprob, theirs.logprob, LOGPROBS),
            ("the log-odds of the score at the first token", ours.answer, theirs.answer, SCORES),
        ):
            if one != other and (one is None or other is None or not abs(one - other) <= most * factor):
                raise LoadError(
                    f"the guard on vLLM is not what it is on our own engine: {what} of {ours.name} is {other}, "
                    f"and should be {one}"
                )


def _odds(score: float) -> float:
    if not 0 < score < 1:
        return math.nan if math.isnan(score) else math.copysign(HIGHEST_ODDS, score - 0.5)
    return max(-HIGHEST_ODDS, min(HIGHEST_ODDS, math.log(score) - math.log1p(-score)))
