"""A client that reads streams at the least cost to the cores it shares with the server: a few microseconds a token.

It sees a line of an event stream as a piece of content or as something else by a pattern, notes when it came, and
parses JSON only of the few that are something else.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

_CONTENT = re.compile(rb'"content": ?"[^"]')


class AnswerError(RuntimeError):
    """A request that got no answer: a status that is not 200, an error within the stream, a connection that broke."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request as its client saw it. Times in seconds of `perf_counter`."""

    due: float  # when it was sent, or should have been
    marks: list[float]  # when each piece of content came
    ended: float
    tokens: int  # as the server counted them; pieces of content where it does not
    prompt_tokens: int | None
    finish: str | None

    @property
    def first_token(self) -> float:
        """Seconds to the first piece of content."""
        return self.marks[0] - self.due


def request_bytes(url: str, body: Mapping[str, Any], path: str = "/v1/chat/completions", key: str = "none") -> bytes:
    """A whole HTTP request, made before it is needed."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Connection(asyncio.Protocol):
    """One connection, one request at a time. `ask` may be cancelled, which ends the connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._tail = b""
        self._marks: list[float] = []
        self._others: list[bytes] = []

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to the server at `url`."""
        place = urlsplit(url)
        assert place.hostname is not None, f"{url} has no host"
        _, connection = await asyncio.get_running_loop().create_connection(cls, place.hostname, place.port or 80)
        return connection

    @property
    def closed(self) -> bool:
        """Whether no further request can be sent."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes, due: float | None = None) -> Answer:
        """Send a request and read its stream to the end. Raises AnswerError."""
        assert self._transport is not None
        assert self._answer is None, "a request is under way"
        self._tail, self._marks, self._others = b"", [], []
        self._answer = asyncio.get_running_loop().create_future()
        sent = perf_counter()
        self._transport.write(request)
        try:
            await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = None
        return self._read(sent if due is None else due)

    # asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Some bytes, cut anywhere."""
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        self._fail(f"the connection was closed: {exc}")

    # httptools -------------------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        *lines, self._tail = (self._tail + body).split(b"\n")
        for line in lines:
            if _CONTENT.search(line):
                self._marks.append(self._now)
            elif line.startswith(b"data:"):
                self._others.append(line)

    def on_message_complete(self) -> None:
        """All of the body."""
        status = self._parser.get_status_code()
        if status != 200:
            told = b"\n".join([*self._others, self._tail])[:300].decode(errors="replace")
            self._fail(f"status {status}: {told}")
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
        if not self._parser.should_keep_alive():
            self.close()

    # -----------------------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AnswerError(reason))

    def _read(self, due: float) -> Answer:
        tokens, prompt_tokens, finish = len(self._marks), None, None
        for line in self._others:
            event = line[5:].strip()
            if event == b"[DONE]":
                continue
            data = json.loads(event)
            if "error" in data:
                raise AnswerError(str(data["error"])[:300])
            if usage := data.get("usage"):
                tokens, prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            for choice in data.get("choices", ()):
                finish = choice.get("finish_reason") or finish
        if not self._marks:
            raise AnswerError("an answer without content")
        return Answer(due, self._marks, self._now, tokens, prompt_tokens, finish)
