"""What the guard saw, token by token, of a prompt and of its answer, as that tells it where it is asked for."""

from __future__ import annotations

from math import isnan

from server.answer.generation import Generation
from server.api.objects import AnswerTokenScore, PromptScores, TokenScoresObject
from server.api.served import Served
from server.request import Request
from steering.policy import Mode


def token_scores_of(request: Request, served: Served) -> TokenScoresObject:
    """The score at each token of a request's prompt; `prompt` is null where nothing scored it."""
    policy = request.policy
    output = policy.output
    return {
        "mode": policy.mode.value,
        "threshold": policy.threshold,
        "answer_threshold": None if output.mode is Mode.OFF else output.threshold,
        "prompt": _prompt_scores(request, served),
    }


def answer_scores(generation: Generation, served: Served) -> list[AnswerTokenScore]:
    """The tokens of a watched answer that are shown and were not told of yet, each with the score at it."""
    bytes_of = served.decoder.bytes_of
    found = generation.reads.take(generation.tokens)
    return [{"token": bytes_of(token).decode(errors="replace"), "score": _number(score)} for token, score in found]


def _prompt_scores(request: Request, served: Served) -> PromptScores | None:
    found, ids = request.token_scores, request.prompt.ids
    if found is None:
        return None
    bytes_of = served.decoder.bytes_of
    return {
        "tokens": [bytes_of(token).decode(errors="replace") for token in ids],
        "scores": [_number(score) for score in found.scores],
        "ends": [*found.ends],
        "counted": [[begin, end] for begin, end in found.counted],
        "images": [{"begin": begin, "end": end, "side": side} for begin, end, side in served.inputs.image_spans(ids)],
    }


def _number(score: float) -> float | None:
    """JSON has no NaN."""
    return None if isnan(score) else score
