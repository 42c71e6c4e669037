"""Server-sent events of one answer, and what happens when its reader stalls or leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from time import monotonic
from typing import TypeVar

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.body import as_json
from server.choices import Choices
from server.errors import ClientGone
from server.generation import Piece, joined
from server.responses import Answer, WholeAnswer

logger = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which readers of server-sent events skip
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def chunks(answer: Answer) -> AsyncIterator[bytes]:
    """An answer's events; one that ends without an answer ends with an error event."""
    if await answer.choices.begun():
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


async def respond(http: HttpRequest, answer: Answer, *, stall_seconds: float, keep_alive_seconds: float) -> Response:
    """The answer, whole or as a stream. Raises ApiError, ClientGone.

    A stream begins once the guard has decided, with its verdict in the headers and failures until then as plain
    errors; or after `keep_alive_seconds` without, for the sake of gateways that wait for a status line.
    """
    if not answer.streamed:
        return await respond_whole(http, answer)
    await unless_gone(http.receive, _begun(answer.choices, keep_alive_seconds))
    return EventStream(answer, stall_seconds=stall_seconds, keep_alive_seconds=keep_alive_seconds)


async def respond_whole(http: HttpRequest, answer: WholeAnswer) -> Response:
    """The answer, once all of it is there. Raises ApiError, ClientGone."""
    return await unless_gone(http.receive, _whole(answer))


async def _begun(choices: Choices, seconds: float) -> None:
    """Wait for the decision, and so for the headers, as long as is right. Raises ApiError; cancelled, it aborts."""
    try:
        async with asyncio.timeout(seconds):
            begun = await choices.begun()
    except TimeoutError:
        return
    except BaseException:
        choices.abort()
        raise
    if not begun:
        assert choices.failure is not None
        raise choices.failure


async def _whole(answer: WholeAnswer) -> Response:
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
    """Streams an answer. It is aborted if the client leaves or does not read for `stall_seconds`.

    Where there is nothing to send for `keep_alive_seconds`, a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, *, stall_seconds: float, keep_alive_seconds: float) -> None:
        self._answer = answer
        self._stall_seconds = stall_seconds
        self._keep_alive_seconds = keep_alive_seconds
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
        writer = _Writer(send, self._stall_seconds)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(writer.keep_alive(self._keep_alive_seconds))
                async for chunk in chunks(self._answer):
                    await writer.write(chunk)
                keeper.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        await writer.write(b"", more=False)


class _Writer:
    """A response's body, each part of which must be taken within `stall_seconds`."""

    def __init__(self, send: Send, stall_seconds: float) -> None:
        self._send = send
        self._stall_seconds = stall_seconds
        self._last = monotonic()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a part. Raises TimeoutError if the client does not read."""
        async with asyncio.timeout(self._stall_seconds):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._last = monotonic()

    async def keep_alive(self, seconds: float) -> None:
        """Send a comment whenever nothing else was sent for so long. Raises TimeoutError like `write`."""
        while True:
            await asyncio.sleep(self._last + seconds - monotonic())
            if monotonic() - self._last >= seconds:
                await self.write(KEEP_ALIVE)


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
