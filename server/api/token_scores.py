"""What the guard saw of a prompt, token by token, as an answer tells it where it is asked for."""

from __future__ import annotations

from server.api.objects import PromptScores, TokenScoresObject
from server.api.served import Served
from server.request import Request


def token_scores_of(request: Request, served: Served) -> TokenScoresObject:
    """The score at each token of a request's prompt; `prompt` is null where nothing scored it."""
    policy = request.policy
    return {"mode": policy.mode.value, "threshold": policy.threshold, "prompt": _prompt_scores(request, served)}


def _prompt_scores(request: Request, served: Served) -> PromptScores | None:
    found, ids = request.token_scores, request.prompt.ids
    if found is None:
        return None
    bytes_of = served.decoder.bytes_of
    return {
        "tokens": [bytes_of(token).decode(errors="replace") for token in ids],
        "scores": [*found.scores],
        "ends": [*found.ends],
        "counted": [*found.counted],
        "images": [{"begin": begin, "end": end, "side": side} for begin, end, side in served.inputs.image_spans(ids)],
    }
