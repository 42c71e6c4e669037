"""Server-sent events of one answer, and what happens when its reader stalls or leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.answer.choices import Choices
from server.api.answer import Answer, Stream
from server.errors import ClientGone
from server.http.body import as_json

logger = logging.getLogger(__name__)

T = TypeVar("T")
# An extension of our server's to ASGI: writes a part of a body where the connection takes it at once, and says so.
WRITE_NOW = "autosteer.write_now"
WriteNow = Callable[[bytes], bool]
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def respond(http: HttpRequest, answer: Answer, *, stall_seconds: float, keep_alive_seconds: float) -> Response:
    """The answer, whole or as a stream. Raises ApiError, ClientGone."""
    if answer.stream is None:
        return await unless_gone(http.receive, _whole(answer))
    return EventStream(answer, answer.stream, stall_seconds=stall_seconds, keep_alive_seconds=keep_alive_seconds)


async def _whole(answer: Answer) -> Response:
    """Wait for the whole answer. Raises the failure it ends with; cancelled, it aborts."""
    choices = answer.choices
    try:
        await choices.over.wait()
    finally:
        choices.abort()
    if choices.failure is not None:
        raise choices.failure
    return as_json(answer.whole(), headers=answer.headers)


class EventStream(Response):
    """Streams an answer, once. It is aborted if the client leaves or does not read for `stall_seconds`.

    The response begins once the guard has decided, with its verdict in the headers, and failures until then are plain
    errors; or after `keep_alive_seconds` without, for the sake of gateways that wait for a status line. From then on a
    comment is sent wherever there is nothing to send for so long.

    Events are written where they are heard, so that a token costs little more than its bytes. The task sends only what
    the connection does not take at once, and what comes meanwhile is one piece after it.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, stream: Stream, *, stall_seconds: float, keep_alive_seconds: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        self._answer = answer
        self._stream = stream
        self._choices: Choices = answer.choices
        self._stall_seconds = stall_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._opened = False  # `opening` is among the events
        self._started = False  # the head is sent
        self._waiter: asyncio.Future[bytes] | None = None  # the task's, unless it sends
        self._write_now: WriteNow = _never
        self._since = 0.0  # when something was last written, or begun to be sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or abort. Raises ApiError and ClientGone before anything is sent, and nothing after it."""
        try:
            await unless_gone(receive, self._send_all(scope, send))
        except ClientGone:
            if not self._started:
                raise
        except TimeoutError:
            logger.warning("request %s: its client does not read", self._choices.generations[0].request.id)
        finally:
            self._choices.abort()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        """Raises TimeoutError if the client does not read."""
        choices = self._choices
        async with asyncio.timeout(None) as limit:
            self._since = monotonic()
            self._look(limit)
            choices.listener = self._on_update
            try:
                body = await self._next()
                if choices.failure is not None and choices.failed_before_output:
                    raise choices.failure
                self.headers.update(self._answer.headers)
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                self._write_now = scope.get("extensions", {}).get(WRITE_NOW, {}).get("write", _never)
                while not choices.drained:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    body = await self._next()
                await send({"type": "http.response.body", "body": body, "more_body": False})
            finally:
                choices.listener = None
                self._timer.cancel()

    async def _next(self) -> bytes:
        """What the task has to send: events that could not be written at once, the last ones, or a comment."""
        self._waiter = asyncio.get_running_loop().create_future()
        self._on_update()
        try:
            return await self._waiter
        finally:
            self._waiter = None
            self._since = monotonic()

    def _on_update(self) -> None:
        """Write what has come, or leave it to the task."""
        if self._waiter is None or self._waiter.done():
            return  # it sends, and looks for itself afterwards
        try:
            events = self._events()
            if self._choices.drained or (events and not self._write_now(events)):
                self._waiter.set_result(events)
            elif events:
                self._since = monotonic()
        except Exception as error:  # noqa: BLE001  the task's, which answers for the stream
            self._waiter.set_exception(error)

    def _events(self) -> bytes:
        """What has come since the last call; with what opens the stream, and what ends it."""
        stream, choices = self._stream, self._choices
        events: list[bytes] = []
        if not self._opened:
            if not choices.decided.is_set():
                return b""
            self._opened = True
            if not choices.failed_before_output:
                events.append(stream.opening())
        for generation, delta in choices.updates():
            events.append(stream.choice_end(generation) if delta is None else stream.delta(generation, delta))
        if choices.drained:
            events.append(stream.end() if choices.failure is None else stream.failed(choices.failure))
        return b"".join(events)

    def _look(self, limit: asyncio.Timeout) -> None:
        """See to what is due: one timer for all that is written, which nothing that is written has to set."""
        loop = asyncio.get_running_loop()
        passed = monotonic() - self._since
        to_stall, to_comment = self._stall_seconds, self._keep_alive_seconds
        if self._waiter is None:
            to_stall -= passed
        elif passed < to_comment:
            to_comment -= passed
        elif not self._waiter.done():
            self._waiter.set_result(self._stream.keep_alive)
        if to_stall <= 0:
            limit.reschedule(loop.time())
        else:  # in time for what is begun from now on
            self._timer = loop.call_later(min(to_stall, to_comment), self._look, limit)


def _never(_: bytes) -> bool:
    return False


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects. Raises ClientGone then."""
    task = asyncio.current_task()
    assert task is not None
    cancelling, gone, over = task.cancelling(), False, False

    def leave(_: object) -> None:
        nonlocal gone
        if not over:  # or this was on its way when the work was done: what comes after it notices by itself
            gone = True
            task.cancel()

    watch = asyncio.ensure_future(_disconnect(receive))
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.cancelling() - 1 <= cancelling:
            raise ClientGone from None
        raise
    finally:
        over = True
        watch.remove_done_callback(leave)
        watch.cancel()
        if gone:
            task.uncancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
