"""Server-sent events of one answer, and what happens when its reader stalls or leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.body import as_json
from server.choices import Choices
from server.errors import ClientGone
from server.generation import Piece, joined
from server.responses import Answer

logger = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def chunks(answer: Answer) -> AsyncIterator[bytes]:
    """An answer's events; one that ends without an answer ends with an error event."""
    for chunk in answer.first_chunks():
        yield event(chunk)
    async for generation, piece in answer.choices.pieces():
        yield event(answer.chunk(generation, piece) if piece else answer.last_chunk(generation))
    if (failure := answer.choices.failure) is not None:
        yield event(failure.body)
    else:
        for chunk in answer.usage_chunks():
            yield event(chunk)
    yield DONE


async def respond(http: HttpRequest, answer: Answer, *, stall_seconds: float) -> Response:
    """The answer, whole or as a stream that begins once the guard has decided. Raises ApiError, ClientGone."""
    if not answer.streamed:
        return await unless_gone(http.receive, _whole(answer))
    await unless_gone(http.receive, _begun(answer.choices))
    return EventStream(answer, stall_seconds=stall_seconds)


async def _begun(choices: Choices) -> None:
    """Wait until the decision, and with it the headers, are known. Raises ApiError; cancelled, it aborts."""
    try:
        await choices.begin()
    except BaseException:
        choices.abort()
        raise


async def _whole(answer: Answer) -> Response:
    """Wait for the whole answer. Raises the failure it ends with; cancelled, it aborts."""
    pieces: list[list[Piece]] = [[] for _ in answer.choices.generations]
    try:
        async for generation, piece in answer.choices.pieces():
            if piece:
                pieces[generation.index].append(piece)
    finally:
        answer.choices.abort()
    if (failure := answer.choices.failure) is not None:
        raise failure
    return as_json(answer.whole([joined(some) for some in pieces]), headers=answer.headers)


class EventStream(Response):
    """Streams an answer that has begun. It is aborted if the client leaves or does not read for `stall_seconds`."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, *, stall_seconds: float) -> None:
        self._answer = answer
        self._stall_seconds = stall_seconds
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **answer.headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Send everything, or abort."""
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            pass
        except TimeoutError:
            logger.warning("request %s: its client does not read", self._answer.choices.generations[0].request.id)
        finally:
            self._answer.choices.abort()

    async def _send_all(self, send: Send) -> None:
        async def send_in_time(body: bytes, *, more: bool) -> None:
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in chunks(self._answer):
            await send_in_time(chunk, more=True)
        await send_in_time(b"", more=False)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
