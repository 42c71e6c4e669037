"""Anthropic's message: the whole answer, and the events of a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import ClassVar

import orjson

from server.answer.choices import Choices
from server.answer.delta import Delta, Kind
from server.answer.generation import Generation
from server.api.answer import ignored_headers, usage_of, verdict_headers
from server.api.anthropic_errors import anthropic_error
from server.api.anthropic_objects import Block, MessageObject, StopReason, ToolUseBlock, Usage
from server.api.events import named_event
from server.api.served import Served
from server.errors import ApiError
from server.request import Finish

NOT_OVER: dict[str, None] = {"stop_reason": None, "stop_sequence": None, "stop_details": None}


class AnthropicAnswer:
    """One message: its object, whole or by events. A refusal is its text, and `stop_reason` says so."""

    keep_alive: ClassVar[bytes] = named_event({"type": "ping"})

    def __init__(
        self,
        answer_id: str,
        choices: Choices,
        served: Served,
        ignored: Collection[str],
        *,
        streams: bool,
        max_tokens: int,
    ) -> None:
        self.choices = choices
        self._id = answer_id
        self._served = served
        self._streams = streams
        self._max_tokens = max_tokens  # that were asked for
        self._generation = choices.generations[0]
        self._request = self._generation.request
        self._ignored = ignored_headers({*ignored, *self._request.prompt.unused})
        self._begun = 0  # blocks of a stream
        self._open: str | None = None  # the type of the last of them, until it ends
        self._called = False

    @property
    def stream(self) -> AnthropicAnswer | None:
        """The answer itself, which frames its events; None where none are asked for."""
        return self if self._streams else None

    @property
    def headers(self) -> dict[str, str]:
        """The hints that were ignored; verdict and score, where the policy shows them."""
        shown = self._request.policy.expose_scores
        return (verdict_headers(self._request.decision) if shown else {}) | self._ignored

    def whole(self) -> MessageObject:
        """The `message` object. A call that was cut is not in it: its input would be another."""
        blocks: list[Block] = []
        said: list[str] = []  # of each: its text, or its input as JSON
        for delta in self._generation.take():
            if delta.kind is Kind.CALL:
                blocks.append(self._call(len(blocks), delta.text))
                said.append("")
                continue
            if delta.kind is not Kind.ARGUMENTS and (not blocks or blocks[-1]["type"] != "text"):
                blocks.append({"type": "text", "text": ""})
                said.append("")
            said[-1] += delta.text
        content = [_filled(block, text) for block, text in zip(blocks, said, strict=True)]
        return self._message([block for block in content if block is not None])

    # the stream ------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """The message as it begins."""
        return named_event({"type": "message_start", "message": {**self._message([]), **NOT_OVER}})

    def delta(self, generation: Generation, delta: Delta) -> bytes:  # noqa: ARG002  there is one
        """The events of a piece."""
        match delta.kind:
            case Kind.CALL:
                return self._begin(self._call(self._begun, delta.text))
            case Kind.ARGUMENTS:
                return self._piece({"type": "input_json_delta", "partial_json": delta.text})
        begun = b"" if self._open == "text" else self._begin({"type": "text", "text": ""})
        return begun + self._piece({"type": "text_delta", "text": delta.text})

    def choice_end(self, generation: Generation) -> bytes:  # noqa: ARG002
        """What ends the last block."""
        return self._close()

    def end(self) -> bytes:
        """Why the message ended, and its usage."""
        ended = self._message([])
        why = {name: ended[name] for name in NOT_OVER}  # type: ignore[literal-required]
        return named_event({"type": "message_delta", "delta": why, "usage": ended["usage"]}) + named_event(
            {"type": "message_stop"}
        )

    def failed(self, failure: ApiError) -> bytes:
        """The error instead of the rest."""
        return named_event(anthropic_error(failure.body, failure.status, None))

    def _begin(self, block: Block) -> bytes:
        closed = self._close()
        self._open, self._begun = block["type"], self._begun + 1
        return closed + named_event({"type": "content_block_start", "index": self._begun - 1, "content_block": block})

    def _piece(self, delta: Mapping[str, str]) -> bytes:
        return named_event({"type": "content_block_delta", "index": self._begun - 1, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return named_event({"type": "content_block_stop", "index": self._begun - 1})

    # objects ---------------------------------------------------------------------------------------------------

    def _call(self, place: int, name: str) -> ToolUseBlock:
        """A call as it begins; its id is the same whether the answer is streamed or not."""
        self._called = True
        number = hashlib.blake2b(f"{self._id}.{place}".encode()).hexdigest()[:24]
        return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}

    def _message(self, content: list[Block]) -> MessageObject:
        refused = self._generation.finish is Finish.CONTENT_FILTER
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._served.name,
            "content": content,
            "stop_reason": self._stop_reason,
            "stop_sequence": self._generation.stop_string,
            "stop_details": {"type": "refusal", "category": None, "explanation": None} if refused else None,
            "usage": self._usage,
        }

    @property
    def _stop_reason(self) -> StopReason:
        match self._generation.finish:
            case Finish.CONTENT_FILTER:
                return "refusal"
            case Finish.LENGTH:
                # The context had less room than was asked for.
                cut = self._request.max_tokens < self._max_tokens
                return "model_context_window_exceeded" if cut else "max_tokens"
        if self._generation.stop_string is not None:
            return "stop_sequence"
        return "tool_use" if self._called else "end_turn"

    @property
    def _usage(self) -> Usage:
        usage = usage_of(self.choices)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }


def _filled(block: Block, said: str) -> Block | None:
    if block["type"] == "text":
        return {**block, "text": said}
    try:
        return {**block, "input": orjson.loads(said)}
    except orjson.JSONDecodeError:
        return None
