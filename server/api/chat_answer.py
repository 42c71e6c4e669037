"""OpenAI's chat objects: the whole answer, and the chunks of a stream."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import ClassVar

from server.answer.choices import Choices
from server.answer.delta import Delta, Kind, joined
from server.answer.generation import Generation
from server.answer.logprobs import Entry
from server.api.answer import (
    answer_result,
    finish_reason,
    ignored_headers,
    moderation_result,
    usage_of,
    verdict_headers,
)
from server.api.chat_logprobs import chat_logprobs
from server.api.chat_request import ChatCompletionRequest
from server.api.events import DONE, HOLE, KEEP_ALIVE, Template, event
from server.api.objects import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFunction,
    ChatFunctionDelta,
    ChatLogprobs,
    ChatMessage,
    ChatModeration,
    ChatModerationError,
    ChatModerationResults,
    ChatToolCall,
    ChatToolCallDelta,
    FinishReason,
    ModerationResult,
)
from server.api.served import Served
from server.api.token_scores import answer_scores, token_scores_of
from server.errors import ApiError
from server.request import Finish
from steering.policy import Mode


class ChatAnswer:
    """One chat answer's objects and chunks. What all of them repeat is worked out once.

    A refusal is the content, and `finish_reason` says `content_filter`: so every client shows it, once. Where the
    client asked for JSON it is OpenAI's own form instead: `content` is null, `refusal` the text, `finish_reason` stop.
    """

    keep_alive: ClassVar[bytes] = KEEP_ALIVE

    def __init__(
        self,
        answer_id: str,
        choices: Choices,
        chat: ChatCompletionRequest,
        served: Served,
        ignored: Collection[str],
        *,
        forced: bool = False,
    ) -> None:
        self.choices = choices
        self._chat = chat
        self._served = served
        self._first = choices.generations[0].request  # all choices have its prompt, and its decision
        self._shown = chat.moderation is not None or self._first.policy.expose_scores
        self._ignored = ignored_headers({*ignored, *self._first.prompt.unused})
        self._forced = forced  # the answer is a call
        self._refuses_apart = forced or chat.answer_schema is not None
        self._id = answer_id
        self._created = int(time.time())
        self._fingerprint = served.fingerprint(self._first.policy)
        # Chunks do, in more than their text.
        self._differ = bool(chat.logprobs or chat.usage_in_chunks or chat.wants_scores)
        self._templates: dict[tuple[Generation, Kind], Template] = {}
        self._called: Counter[Generation] = Counter()  # calls that were begun

    @property
    def stream(self) -> ChatAnswer | None:
        """The answer itself, which frames its chunks; None where none are asked for."""
        return self if self._chat.stream else None

    @property
    def headers(self) -> dict[str, str]:
        """The hints that were ignored; verdict and score, where the request or the policy asks for them."""
        return (verdict_headers(self._first.decision) if self._shown else {}) | self._ignored

    # the whole answer ------------------------------------------------------------------------------------------

    def whole(self) -> ChatCompletion:
        """The `chat.completion` object."""
        answer: ChatCompletion = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": [self._choice(generation) for generation in self.choices.generations],
            "usage": usage_of(self.choices),
        }
        if self._chat.metadata is not None:
            answer["metadata"] = self._chat.metadata
        if self._shown:
            answer["moderation"] = self._moderation()
        if self._chat.wants_scores:
            answer["token_scores"] = token_scores_of(self._first, self._served)
        return answer

    def _choice(self, generation: Generation) -> ChatChoice:
        deltas = generation.take()
        text, refusal = joined(deltas, Kind.TEXT), joined(deltas, Kind.REFUSAL)
        apart = generation.refused and self._refuses_apart
        if not apart:
            text = Delta(Kind.TEXT, text.text + refusal.text, [*text.entries, *refusal.entries])
        calls = self._whole_calls(generation, deltas)
        message: ChatMessage = {
            "role": "assistant",
            "content": None if (apart or self._forced or calls) and not text.text else text.text,
            "refusal": refusal.text if apart else None,
        }
        if calls:
            message["tool_calls"] = calls
        choice: ChatChoice = {
            "index": generation.index,
            "message": message,
            "logprobs": self._logprobs(text.entries, refusal.entries if apart else None),
            "finish_reason": self._finish_reason(generation),
        }
        if self._chat.wants_scores and self._watched:
            choice["token_scores"] = answer_scores(generation, self._served)
        return choice

    def _whole_calls(self, generation: Generation, deltas: Sequence[Delta]) -> list[ChatToolCall]:
        calls: list[ChatToolCall] = []
        for delta in deltas:
            if delta.kind is Kind.CALL:
                function: ChatFunction = {"name": delta.text, "arguments": ""}
                calls.append({"id": self._next_call(generation), "type": "function", "function": function})
            elif delta.kind is Kind.ARGUMENTS:
                calls[-1]["function"]["arguments"] += delta.text
        return calls

    def _next_call(self, generation: Generation) -> str:
        """The id of a call that begins: the same whether the answer is streamed or not."""
        number = self._called[generation]
        self._called[generation] += 1
        return "call_" + hashlib.blake2b(f"{self._id}.{generation.index}.{number}".encode()).hexdigest()[:24]

    def _logprobs(self, content: Sequence[Entry] | None, refusal: Sequence[Entry] | None) -> ChatLogprobs | None:
        """Where the request asks for them."""
        if not self._chat.logprobs:
            return None
        return chat_logprobs(content, refusal)

    def _finish_reason(self, generation: Generation) -> FinishReason:
        if self._refuses_apart and generation.finish is Finish.CONTENT_FILTER:
            return "stop"
        if self._called[generation] and generation.finish is Finish.STOP:
            return "tool_calls"
        return finish_reason(generation)

    # the stream ------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """A chunk for each choice; the first carries the moderation and the scores of tokens that are asked for."""
        chunks = [self._chunk(generation, self._role(generation)) for generation in self.choices.generations]
        if self._shown:
            chunks[0]["moderation"] = self._moderation()
        if self._chat.wants_scores:
            chunks[0]["token_scores"] = token_scores_of(self._first, self._served)
        return b"".join(map(event, chunks))

    def _role(self, generation: Generation) -> ChatDelta:
        if generation.refused and self._refuses_apart:
            return {"role": "assistant", "content": None, "refusal": ""}
        return {"role": "assistant", "content": None if self._forced else "", "refusal": None}

    def delta(self, generation: Generation, delta: Delta) -> bytes:
        """A chunk with a piece of a choice."""
        if delta.kind is Kind.CALL:
            return event(self._chunk(generation, {"tool_calls": [self._begun_call(generation, delta.text)]}))
        if self._differ or self._called[generation] > 1:
            return event(self._piece(generation, delta))
        template = self._templates.get((generation, delta.kind))
        if template is None:
            template = Template(self._piece(generation, Delta(delta.kind, HOLE)))
            self._templates[generation, delta.kind] = template
        return template.filled(delta.text)

    def _begun_call(self, generation: Generation, name: str) -> ChatToolCallDelta:
        number = self._called[generation]
        function: ChatFunctionDelta = {"name": name, "arguments": ""}
        return {"index": number, "id": self._next_call(generation), "type": "function", "function": function}

    def _piece(self, generation: Generation, delta: Delta) -> ChatCompletionChunk:
        if not delta.text and not delta.entries:
            return self._chunk(generation, {})  # it tells how much is held back
        if delta.kind is Kind.ARGUMENTS:
            call: ChatToolCallDelta = {
                "index": self._called[generation] - 1,
                "function": {"arguments": delta.text},
            }
            return self._chunk(generation, {"tool_calls": [call]})
        if delta.kind is Kind.REFUSAL and self._refuses_apart:
            return self._chunk(generation, {"refusal": delta.text}, logprobs=self._logprobs(None, delta.entries))
        return self._chunk(generation, {"content": delta.text}, logprobs=self._logprobs(delta.entries, None))

    def choice_end(self, generation: Generation) -> bytes:
        """The chunk that says why a choice ended."""
        chunk = self._chunk(generation, {}, self._finish_reason(generation))
        if self._shown and self._watched and self.choices.outcome is not None:
            chunk["moderation"] = self._moderation()
        return event(chunk)

    def end(self) -> bytes:
        """Usage, if the request wants it, and `[DONE]`."""
        if not self._chat.include_usage:
            return DONE
        return event({**self._bare_chunk(), "usage": usage_of(self.choices)}) + DONE

    def failed(self, failure: ApiError) -> bytes:
        """The error object, and `[DONE]`."""
        return event(failure.body) + DONE

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
        if self._chat.wants_scores and self._watched:
            chunk["choices"][0]["token_scores"] = answer_scores(generation, self._served)
            chunk["choices"][0]["held"] = generation.held
        if self._chat.usage_in_chunks:
            chunk["usage"] = usage_of(self.choices)
        elif self._chat.include_usage:
            chunk["usage"] = None
        return chunk

    # what the guard found --------------------------------------------------------------------------------------

    @property
    def _watched(self) -> bool:
        return self._first.policy.output.mode is not Mode.OFF

    def _moderation(self) -> ChatModeration:
        """OpenAI's moderation object: of the prompt, and of each choice where answers are watched and all are over."""
        return {"input": self._moderated_input(), "output": self._moderated_output()}

    def _moderated_input(self) -> ChatModerationResults | ChatModerationError:
        result = moderation_result(self._first)
        if result is None:
            return _error("not_scored", "no guard scored this request")
        return self._results([result])

    def _moderated_output(self) -> ChatModerationResults | ChatModerationError:
        if not self._watched:
            return _error("not_supported", "the guard scores the input only")
        if self.choices.outcome is None:
            return _error("not_over", "the last chunk has the scores of the answer")
        found = [answer_result(generation) for generation in self.choices.generations]
        if any(result is None for result in found):
            return _error("not_scored", "the answer was ended before all of it was scored")
        return self._results([result for result in found if result is not None])

    def _results(self, results: Sequence[ModerationResult]) -> ChatModerationResults:
        model = self._served.name
        return {
            "type": "moderation_results",
            "model": model,
            "results": [{"type": "moderation_result", "model": model, **result} for result in results],
        }


def _error(code: str, message: str) -> ChatModerationError:
    return {"type": "error", "code": code, "message": message}
