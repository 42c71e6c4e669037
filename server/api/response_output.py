"""The output of a response: pieces of an answer become items, and the events that tell of them."""

from __future__ import annotations

import hashlib
from typing import Any, cast

from server.answer.delta import Delta, Kind
from server.api.responses_objects import CallItem, MessageItem, OutputItem, RefusalPart, TextPart

Event = dict[str, Any]  # without its number


class ResponseOutput:
    """The items of one response. `push` every piece, then `finish`; each gives the events of it."""

    def __init__(self, response_id: str) -> None:
        self.items: list[OutputItem] = []
        self._response_id = response_id
        self._open = False  # the last item, and the last part of it

    def push(self, delta: Delta) -> list[Event]:
        """Take one more piece; give its events."""
        match delta.kind:
            case Kind.CALL:
                return [*self._close("completed"), *self._begin_call(delta.text)]
            case Kind.ARGUMENTS:
                call = cast(CallItem, self.items[-1])
                call["arguments"] += delta.text
                return [self._event("function_call_arguments.delta", delta=delta.text)]
            case Kind.REFUSAL:
                return self._say("refusal", delta.text)
        return self._say("output_text", delta.text)

    def finish(self, *, complete: bool) -> list[Event]:
        """End after the last piece. An answer without any is an empty message."""
        empty = [] if self.items else self._say("output_text", "")
        return [*empty, *self._close("completed" if complete else "incomplete")]

    def _say(self, kind: str, text: str) -> list[Event]:
        events: list[Event] = []
        if not self.items or self.items[-1]["type"] != "message":
            events += [*self._close("completed"), *self._begin_message()]
        message = cast(MessageItem, self.items[-1])
        if not message["content"] or message["content"][-1]["type"] != kind:
            events += [*self._close_part(), *self._begin_part(kind)]
        part = message["content"][-1]
        if part["type"] == "output_text":
            part["text"] += text
            return [*events, self._part_event("output_text.delta", delta=text, logprobs=[])]
        part["refusal"] += text
        return [*events, self._part_event("refusal.delta", delta=text)]

    # items -----------------------------------------------------------------------------------------------------

    def _begin_call(self, name: str) -> list[Event]:
        call: CallItem = {
            "id": self._new_id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": self._new_id("call"),
            "name": name,
            "arguments": "",
        }
        return self._begin(call)

    def _begin_message(self) -> list[Event]:
        message: MessageItem = {
            "id": self._new_id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        return self._begin(message)

    def _begin(self, item: OutputItem) -> list[Event]:
        self.items.append(item)
        self._open = True
        shown = {**item, "content": []} if item["type"] == "message" else {**item}
        return [self._placed("output_item.added", item=shown)]

    def _close(self, status: str) -> list[Event]:
        if not self._open:
            return []
        item = self.items[-1]
        if item["type"] == "message":
            events = self._close_part()
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._event("function_call_arguments.done", **done)]
        item["status"] = cast(Any, status)
        self._open = False
        return [*events, self._placed("output_item.done", item=item)]

    def _new_id(self, kind: str) -> str:
        """The same whether the answer is streamed or not."""
        named = f"{self._response_id}.{kind}.{len(self.items)}"
        return f"{kind}_{hashlib.blake2b(named.encode()).hexdigest()[:32]}"

    # parts -----------------------------------------------------------------------------------------------------

    def _begin_part(self, kind: str) -> list[Event]:
        text: TextPart = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        refusal: RefusalPart = {"type": "refusal", "refusal": ""}
        part: TextPart | RefusalPart = text if kind == "output_text" else refusal
        cast(MessageItem, self.items[-1])["content"].append(part)
        return [self._part_event("content_part.added", part={**part})]

    def _close_part(self) -> list[Event]:
        content = cast(MessageItem, self.items[-1])["content"]
        if not content:
            return []
        part = content[-1]
        if part["type"] == "output_text":
            done = self._part_event("output_text.done", text=part["text"], logprobs=[])
        else:
            done = self._part_event("refusal.done", refusal=part["refusal"])
        return [done, self._part_event("content_part.done", part=part)]

    # events ----------------------------------------------------------------------------------------------------

    def _placed(self, name: str, /, **fields: Any) -> Event:  # noqa: ANN401  JSON
        return {"type": f"response.{name}", "output_index": len(self.items) - 1, **fields}

    def _event(self, name: str, /, **fields: Any) -> Event:  # noqa: ANN401
        return self._placed(name, item_id=self.items[-1]["id"], **fields)

    def _part_event(self, name: str, /, **fields: Any) -> Event:  # noqa: ANN401
        place = len(cast(MessageItem, self.items[-1])["content"]) - 1
        return self._event(name, content_index=place, **fields)
