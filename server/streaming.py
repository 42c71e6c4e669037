"""Server-sent events of one answer, and what happens when its reader stalls or leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import ClientGone
from server.responses import Answer

logger = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def chunks(answer: Answer, *, include_usage: bool) -> AsyncIterator[bytes]:
    """An answer's events; one that ends without an answer ends with an error event."""
    yield event(answer.first_chunk())
    async for text in answer.generation.texts():
        yield event(answer.text_chunk(text))
    if (failure := answer.generation.failure) is not None:
        yield event(failure.body)
    else:
        yield event(answer.last_chunk())
        if include_usage:
            yield event(answer.usage_chunk())
    yield DONE


class EventStream(Response):
    """Streams a generation that has begun. It is aborted if the client leaves or does not read for `stall_seconds`."""

    media_type = "text/event-stream"

    def __init__(
        self, answer: Answer, *, include_usage: bool, stall_seconds: float, headers: Mapping[str, str]
    ) -> None:
        self._answer = answer
        self._include_usage = include_usage
        self._stall_seconds = stall_seconds
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Send everything, or abort."""
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGone:
            pass
        except TimeoutError:
            logger.warning("request %s: its client does not read", self._answer.generation.request.id)
        finally:
            self._answer.generation.abort()

    async def _send_all(self, send: Send) -> None:
        async def send_in_time(body: bytes, *, more: bool) -> None:
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in chunks(self._answer, include_usage=self._include_usage):
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
