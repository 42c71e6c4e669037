"""OpenAI's chat objects: the whole answer, and the chunks of a stream; and what all answers share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from server.answer.choices import Choices
from server.answer.generation import Generation, Piece
from server.answer.logprobs import Entry
from server.api.events import HOLE, Template, event
from server.api.objects import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatModeration,
    ChatModerationError,
    ChatModerationResults,
    FinishReason,
    InputType,
    Model,
    ModerationResult,
    OneLogprob,
    TokenLogprob,
    Usage,
)
from server.api.schemas import ChatCompletionRequest
from server.api.served import Served
from server.request import Request
from steering.policy import Decision

CATEGORY = "unsafe"  # what the prober was trained to tell apart, as one category


class WholeAnswer(Protocol):
    """What is sent of an answer, whichever route it is for. Only for the event loop's thread."""

    choices: Choices

    @property
    def headers(self) -> dict[str, str]:
        """What the guard decided, where that is shown; known once `choices` have begun."""

    def whole(self, pieces: Sequence[Piece]) -> Mapping[str, Any]:
        """The one object that is not streamed, from all that each choice says."""


class Answer(WholeAnswer, Protocol):
    """An answer that may be streamed."""

    streamed: bool

    def first_chunks(self) -> Sequence[Mapping[str, Any]]:
        """What opens a stream."""

    def piece(self, generation: Generation, piece: Piece) -> bytes:
        """A piece of a choice, as an event: said for every token."""

    def last_chunk(self, generation: Generation) -> Mapping[str, Any]:
        """Why a choice ended."""

    def usage_chunks(self) -> Sequence[Mapping[str, Any]]:
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
        self._id = answer_id
        self._created = int(time.time())
        self._fingerprint = served.fingerprint(self._first.policy)
        self._templates: dict[Generation, Template] = {}

    @property
    def headers(self) -> dict[str, str]:
        """Verdict and score, where the request or the policy asks for them."""
        return verdict_headers(self._first.decision) if self._shown else {}

    def whole(self, pieces: Sequence[Piece]) -> ChatCompletion:
        """The `chat.completion` object."""
        answer: ChatCompletion = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": [self._choice(*each) for each in zip(self.choices.generations, pieces, strict=True)],
            "usage": usage_of(self.choices),
        }
        if self._chat.metadata is not None:
            answer["metadata"] = self._chat.metadata
        if self._shown:
            answer["moderation"] = self._moderation()
        return answer

    def _choice(self, generation: Generation, piece: Piece) -> ChatChoice:
        refusal = piece.text if generation.flagged else None
        return {
            "index": generation.index,
            "message": {"role": "assistant", "content": piece.text, "refusal": refusal},
            "logprobs": self._logprobs(generation, piece),
            "finish_reason": finish_reason(generation),
        }

    def first_chunks(self) -> list[ChatCompletionChunk]:
        """The chunks that open a stream, one for each choice; the first carries the moderation if asked for."""
        delta: ChatDelta = {"role": "assistant", "content": "", "refusal": None}
        chunks = [self._chunk(generation, delta) for generation in self.choices.generations]
        if self._shown:
            chunks[0]["moderation"] = self._moderation()
        return chunks

    def piece(self, generation: Generation, piece: Piece) -> bytes:
        """A piece of a choice; of a flagged one, in both deltas."""
        if self._chat.logprobs:
            return event(self._piece(generation, piece))
        template = self._templates.get(generation)
        if template is None:
            template = self._templates[generation] = Template(self._piece(generation, Piece(HOLE, [])))
        return template.filled(piece.text)

    def _piece(self, generation: Generation, piece: Piece) -> ChatCompletionChunk:
        delta: ChatDelta = {"content": piece.text}
        if generation.flagged:
            delta["refusal"] = piece.text
        return self._chunk(generation, delta, logprobs=self._logprobs(generation, piece))

    def last_chunk(self, generation: Generation) -> ChatCompletionChunk:
        """The chunk that says why a choice ended."""
        return self._chunk(generation, {}, finish_reason(generation))

    def usage_chunks(self) -> list[ChatCompletionChunk]:
        """The chunk after the last one, if the request wants usage."""
        if not self._chat.include_usage:
            return []
        return [{**self._bare_chunk(), "usage": usage_of(self.choices)}]

    def _bare_chunk(self) -> ChatCompletionChunk:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": [],
        }

    def _chunk(
        self,
        generation: Generation,
        delta: ChatDelta,
        finish: FinishReason | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatCompletionChunk:
        chunk = self._bare_chunk()
        chunk["choices"] = [{"index": generation.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]
        if self._chat.include_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, generation: Generation, piece: Piece) -> ChatLogprobs | None:
        """Where the request asks for them; a refusal's tokens are those of the content, as its text is."""
        if not self._chat.logprobs:
            return None
        content = [_token_logprob(entry) for entry in piece.entries]
        return {"content": content, "refusal": content if generation.flagged else None}

    def _moderation(self) -> ChatModeration:
        """OpenAI's moderation object. The guard reads the prompt, so there is no result for the output."""
        return {"input": self._moderated_input(), "output": _error("not_supported", "the guard scores the input only")}

    def _moderated_input(self) -> ChatModerationResults | ChatModerationError:
        result = moderation_result(self._first)
        if result is None:
            return _error("not_scored", "no guard scored this request")
        model = self._served.name
        return {
            "type": "moderation_results",
            "model": model,
            "results": [{"type": "moderation_result", "model": model, **result}],
        }


def _token_logprob(entry: Entry) -> TokenLogprob:
    top = [_one_logprob(token, logprob) for token, logprob in entry.top]
    return {**_one_logprob(entry.data, entry.logprob), "top_logprobs": top}


def _one_logprob(token: bytes, logprob: float) -> OneLogprob:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _error(code: str, message: str) -> ChatModerationError:
    return {"type": "error", "code": code, "message": message}


# what all answers share --------------------------------------------------------------------------------------------


def finish_reason(generation: Generation) -> FinishReason:
    """Why a choice that was answered ended."""
    assert generation.finish is not None
    return cast(FinishReason, generation.finish.value)  # a failure is an error, and never gets here


def usage_of(choices: Choices) -> Usage:
    """Token counts: each prompt's once, the tokens of all choices; of a prompt that is blocked, none."""
    prompts = [leader.request.prompt for leader in choices.leaders]
    prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": choices.tokens,
        "total_tokens": prompt_tokens + choices.tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(leader.request.cached_tokens or 0 for leader in choices.leaders),
            "image_tokens": sum(prompt.image_tokens for prompt in prompts),
        },
    }


def verdict_headers(decision: Decision | None) -> dict[str, str]:
    """A decision as headers."""
    if decision is None:
        return {}
    headers = {"x-autosteer-verdict": decision.verdict.value}
    if decision.score is not None:
        headers["x-autosteer-score"] = f"{decision.score:.6f}"
    return headers


def moderation_result(request: Request) -> ModerationResult | None:
    """What the guard found in a prompt; `None` where nothing scored it."""
    decision = request.decision
    if decision is None or decision.score is None:
        return None
    types: list[InputType] = ["text", "image"] if request.prompt.image_tokens else ["text"]
    return {
        "flagged": decision.flagged,
        "categories": {CATEGORY: decision.flagged},
        "category_scores": {CATEGORY: decision.score},
        "category_applied_input_types": {CATEGORY: types},
    }


def model_object(served: Served) -> Model:
    """OpenAI's `model` object, with the context length as other servers give it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "autosteer",
        "max_model_len": served.info.context_length,
    }
