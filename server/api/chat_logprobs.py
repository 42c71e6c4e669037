"""OpenAI's log-probabilities of a chat's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from server.answer.logprobs import Entry
from server.api.objects import ChatLogprobs, OneLogprob, TokenLogprob


def chat_logprobs(content: Sequence[Entry] | None, refusal: Sequence[Entry] | None) -> ChatLogprobs:
    """Log-probabilities of an answer's text, or of a refusal that stands apart from it."""
    return {
        "content": None if content is None else [_token_logprob(entry) for entry in content],
        "refusal": None if refusal is None else [_token_logprob(entry) for entry in refusal],
    }


def _token_logprob(entry: Entry) -> TokenLogprob:
    top = [_one_logprob(token, logprob) for token, logprob in entry.top]
    return {**_one_logprob(entry.data, entry.logprob), "top_logprobs": top}


def _one_logprob(token: bytes, logprob: float) -> OneLogprob:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
