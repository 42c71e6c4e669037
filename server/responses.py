"""OpenAI's response objects as plain dicts: the whole answer, and the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from server.choices import Choices
from server.generation import Generation, Piece
from server.logprobs import Entry
from server.schemas import ChatCompletionRequest
from server.serving import Served

CATEGORY = "unsafe"  # what the prober was trained to tell apart, as one category


class Answer(Protocol):
    """What is sent of an answer, whichever route it is for. Only for the event loop's thread."""

    choices: Choices
    streamed: bool

    @property
    def headers(self) -> dict[str, str]:
        """What the guard decided, where that is shown; known once `choices` have begun."""

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The one object that is not streamed, from all that each choice says."""

    def first_chunks(self) -> list[dict[str, Any]]:
        """What opens a stream."""

    def chunk(self, generation: Generation, piece: Piece) -> dict[str, Any]:
        """A piece of a choice."""

    def last_chunk(self, generation: Generation) -> dict[str, Any]:
        """Why a choice ended."""

    def usage_chunks(self) -> list[dict[str, Any]]:
        """What ends a stream."""


class ChatAnswer:
    """One chat answer's objects. What all of them repeat is worked out once."""

    def __init__(self, answer_id: str, choices: Choices, chat: ChatCompletionRequest, served: Served) -> None:
        self.choices = choices
        self.streamed = bool(chat.stream)
        self._chat = chat
        self._served = served
        self._first = choices.generations[0].request  # all choices have its prompt, and its decision
        self._shown = chat.moderation is not None or self._first.policy.expose_scores
        self._common: dict[str, Any] = {
            "id": answer_id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint(self._first.policy),
        }

    @property
    def headers(self) -> dict[str, str]:
        """Verdict and score, where the request or the policy asks for them."""
        decision = self._first.decision
        if decision is None or not self._shown:
            return {}
        headers = {"x-autosteer-verdict": decision.verdict.value}
        if decision.score is not None:
            headers["x-autosteer-score"] = f"{decision.score:.6f}"
        return headers

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The `chat.completion` object."""
        choices = [self._choice(each, piece) for each, piece in zip(self.choices.generations, pieces, strict=True)]
        answer = {"object": "chat.completion", **self._common, "choices": choices, "usage": self.usage()}
        if self._chat.metadata is not None:
            answer["metadata"] = self._chat.metadata
        if self._shown:
            answer["moderation"] = self.moderation()
        return answer

    def _choice(self, generation: Generation, piece: Piece) -> dict[str, Any]:
        assert generation.finish is not None
        refusal = piece.text if generation.flagged else None
        message = {"role": "assistant", "content": piece.text, "refusal": refusal}
        return {
            "index": generation.index,
            "message": message,
            "logprobs": self._logprobs(generation, piece),
            "finish_reason": generation.finish.value,
        }

    def first_chunks(self) -> list[dict[str, Any]]:
        """The chunks that open a stream, one for each choice; the first carries the moderation if asked for."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        chunks = [self._chunk(generation, delta) for generation in self.choices.generations]
        if self._shown:
            chunks[0]["moderation"] = self.moderation()
        return chunks

    def chunk(self, generation: Generation, piece: Piece) -> dict[str, Any]:
        """A piece of a choice; of a flagged one, in both deltas."""
        delta = {"content": piece.text, "refusal": piece.text} if generation.flagged else {"content": piece.text}
        return self._chunk(generation, delta, logprobs=self._logprobs(generation, piece))

    def last_chunk(self, generation: Generation) -> dict[str, Any]:
        """The chunk that says why a choice ended."""
        assert generation.finish is not None
        return self._chunk(generation, {}, generation.finish.value)

    def usage_chunks(self) -> list[dict[str, Any]]:
        """The chunk after the last one, if the request wants usage."""
        if not self._chat.include_usage:
            return []
        return [{"object": "chat.completion.chunk", **self._common, "choices": [], "usage": self.usage()}]

    def _logprobs(self, generation: Generation, piece: Piece) -> dict[str, Any] | None:
        """Where the request asks for them; a refusal's tokens are those of the content, as its text is."""
        if not self._chat.logprobs:
            return None
        content = [_token_logprob(entry) for entry in piece.entries]
        return {"content": content, "refusal": content if generation.flagged else None}

    def _chunk(
        self,
        generation: Generation,
        delta: dict[str, Any],
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": generation.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = {"object": "chat.completion.chunk", **self._common, "choices": [choice]}
        if self._chat.include_usage:
            chunk["usage"] = None
        return chunk

    def usage(self) -> dict[str, Any]:
        """Token counts: the prompt's once, the tokens of all choices; of a prompt that is blocked, none."""
        prompt = self._first.prompt
        return {
            "prompt_tokens": len(prompt.ids),
            "completion_tokens": self.choices.tokens,
            "total_tokens": len(prompt.ids) + self.choices.tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": prompt.image_tokens},
        }

    def moderation(self) -> dict[str, Any]:
        """OpenAI's moderation object. The guard reads the prompt, so there is no result for the output."""
        return {"input": self._moderated_input(), "output": _error("not_supported", "the guard scores the input only")}

    def _moderated_input(self) -> dict[str, Any]:
        decision = self._first.decision
        if decision is None or decision.score is None:
            return _error("not_scored", "no guard scored this request")
        result = {
            "type": "moderation_result",
            "model": self._served.name,
            "flagged": decision.flagged,
            "categories": {CATEGORY: decision.flagged},
            "category_scores": {CATEGORY: decision.score},
            "category_applied_input_types": {
                CATEGORY: ["text", "image"] if self._first.prompt.image_tokens else ["text"]
            },
        }
        return {"type": "moderation_results", "model": self._served.name, "results": [result]}


def _token_logprob(entry: Entry) -> dict[str, Any]:
    return {
        **_one_logprob(entry.data, entry.logprob),
        "top_logprobs": [_one_logprob(token, logprob) for token, logprob in entry.top],
    }


def _one_logprob(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message}


def model_object(served: Served) -> dict[str, Any]:
    """OpenAI's `model` object, with the context length as other servers give it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "autosteer",
        "max_model_len": served.info.context_length,
    }
