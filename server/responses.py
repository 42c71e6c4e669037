"""OpenAI's response objects as plain dicts: the whole answer, and the chunks of a stream."""

from __future__ import annotations

import time
from typing import Any

from server.generation import Generation
from server.schemas import ChatCompletionRequest
from server.serving import Served

CATEGORY = "unsafe"  # what the prober was trained to tell apart, as one category


class Answer:
    """One answer's objects. What all of them repeat is worked out once."""

    def __init__(self, generation: Generation, chat: ChatCompletionRequest, served: Served) -> None:
        self.generation = generation
        self._chat = chat
        self._served = served
        self._has_image = generation.request.prompt.image_tokens > 0
        self._shown = chat.moderation is not None or generation.request.policy.expose_scores
        self._common: dict[str, Any] = {
            "id": generation.request.id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    @property
    def headers(self) -> dict[str, str]:
        """Verdict and score, where the request or the policy asks for them."""
        decision = self.generation.request.decision
        if decision is None or not self._shown:
            return {}
        headers = {"x-autosteer-verdict": decision.verdict.value}
        if decision.score is not None:
            headers["x-autosteer-score"] = f"{decision.score:.6f}"
        return headers

    def whole(self, text: str) -> dict[str, Any]:
        """The `chat.completion` object."""
        assert self.generation.finish is not None
        message = {"role": "assistant", "content": text, "refusal": text if self.generation.flagged else None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.generation.finish.value}
        answer = {"object": "chat.completion", **self._common, "choices": [choice], "usage": self.usage()}
        if self._chat.metadata is not None:
            answer["metadata"] = self._chat.metadata
        if self._shown:
            answer["moderation"] = self.moderation()
        return answer

    def first_chunk(self) -> dict[str, Any]:
        """The chunk that opens a stream; it carries the moderation where that is asked for."""
        chunk = self._chunk({"role": "assistant", "content": "", "refusal": None})
        if self._shown:
            chunk["moderation"] = self.moderation()
        return chunk

    def text_chunk(self, text: str) -> dict[str, Any]:
        """A piece of the answer; of a flagged one, in both deltas."""
        return self._chunk({"content": text, "refusal": text} if self.generation.flagged else {"content": text})

    def last_chunk(self) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        assert self.generation.finish is not None
        return self._chunk({}, self.generation.finish.value)

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk after the last one, if the request wants usage."""
        return {"object": "chat.completion.chunk", **self._common, "choices": [], "usage": self.usage()}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {"object": "chat.completion.chunk", **self._common, "choices": [choice]}
        if self._chat.include_usage:
            chunk["usage"] = None
        return chunk

    def usage(self) -> dict[str, Any]:
        """Token counts; of a prompt that is blocked, nothing was generated."""
        prompt = self.generation.request.prompt
        return {
            "prompt_tokens": len(prompt.ids),
            "completion_tokens": self.generation.tokens,
            "total_tokens": len(prompt.ids) + self.generation.tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": prompt.image_tokens},
        }

    def moderation(self) -> dict[str, Any]:
        """OpenAI's moderation object. The guard reads the prompt, so there is no result for the output."""
        return {"input": self._moderated_input(), "output": _error("not_supported", "the guard scores the input only")}

    def _moderated_input(self) -> dict[str, Any]:
        decision = self.generation.request.decision
        if decision is None or decision.score is None:
            return _error("not_scored", "no guard scored this request")
        result = {
            "type": "moderation_result",
            "model": self._served.name,
            "flagged": decision.flagged,
            "categories": {CATEGORY: decision.flagged},
            "category_scores": {CATEGORY: decision.score},
            "category_applied_input_types": {CATEGORY: ["text", "image"] if self._has_image else ["text"]},
        }
        return {"type": "moderation_results", "model": self._served.name, "results": [result]}


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
