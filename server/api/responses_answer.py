"""OpenAI's response objects: the whole answer, and the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, ClassVar

from server.answer.choices import Choices
from server.answer.delta import Delta
from server.answer.generation import Generation
from server.api.answer import ignored_headers, usage_of, verdict_headers
from server.api.events import KEEP_ALIVE, named_event
from server.api.response_output import Event, ResponseOutput
from server.api.responses_objects import ResponseError, ResponseObject, ResponseStatus, ResponseUsage
from server.api.responses_request import ResponsesRequest
from server.api.served import Served
from server.errors import ApiError
from server.request import Finish

TOOL: dict[str, Any] = {"description": None, "parameters": None, "strict": True}  # where a request does not say


class ResponsesAnswer:
    """One response: its object, whole or by events. What the guard refuses is a part of type `refusal`."""

    keep_alive: ClassVar[bytes] = KEEP_ALIVE

    def __init__(
        self,
        answer_id: str,
        choices: Choices,
        asked: ResponsesRequest,
        served: Served,
        ignored: Collection[str],
    ) -> None:
        self.choices = choices
        self._id = answer_id
        self._asked = asked
        self._served = served
        self._created = int(time.time())
        self._request = choices.generations[0].request
        self._ignored = ignored_headers({*ignored, *self._request.prompt.unused})
        self._output = ResponseOutput(answer_id)
        self._number = 0

    @property
    def stream(self) -> ResponsesAnswer | None:
        """The answer itself, which frames its events; None where none are asked for."""
        return self if self._asked.stream else None

    @property
    def headers(self) -> dict[str, str]:
        """The hints that were ignored; verdict and score, where the policy shows them."""
        shown = self._request.policy.expose_scores
        return (verdict_headers(self._request.decision) if shown else {}) | self._ignored

    def whole(self) -> ResponseObject:
        """The `response` object."""
        generation = self.choices.generations[0]
        for delta in generation.take():
            self._output.push(delta)
        self._output.finish(complete=self._complete)
        return self._object(self._status)

    # the stream ------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """The response as it begins."""
        begun = self._object("in_progress")
        return self._events([{"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")])

    def delta(self, generation: Generation, delta: Delta) -> bytes:  # noqa: ARG002  there is one
        """The events of a piece."""
        return self._events(self._output.push(delta))

    def choice_end(self, generation: Generation) -> bytes:  # noqa: ARG002
        """What ends the last item."""
        return self._events(self._output.finish(complete=self._complete))

    def end(self) -> bytes:
        """The whole response."""
        return self._events([{"type": f"response.{self._status}", "response": self._object(self._status)}])

    def failed(self, failure: ApiError) -> bytes:
        """The response as far as it came, and why it ended."""
        error: ResponseError = {"code": "server_error", "message": failure.message}
        return self._events([{"type": "response.failed", "response": self._object("failed", error)}])

    def _events(self, events: Collection[Event]) -> bytes:
        out: list[bytes] = []
        for event in events:
            out.append(named_event({**event, "sequence_number": self._number}))
            self._number += 1
        return b"".join(out)

    # the object ------------------------------------------------------------------------------------------------

    @property
    def _complete(self) -> bool:
        return self.choices.generations[0].finish is not Finish.LENGTH

    @property
    def _status(self) -> ResponseStatus:
        return "completed" if self._complete else "incomplete"

    def _object(self, status: ResponseStatus, error: ResponseError | None = None) -> ResponseObject:
        asked = self._asked
        given: dict[str, Any] = asked.model_dump(
            include={"text", "tool_choice", "tools"}, exclude_none=True, by_alias=True
        )
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self._served.name,
            "output": self._output.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": given.get("text") or {"format": {"type": "text"}},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": [TOOL | tool for tool in given.get("tools", [])],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> ResponseUsage:
        usage = usage_of(self.choices)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cache_write_tokens": 0,
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
