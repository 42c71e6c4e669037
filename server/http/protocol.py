"""uvicorn's HTTP/1.1 protocol with limits on a request's head, and an end of connections that both sides survive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http.connections import Connections
from server.http.pace import SMALL_BYTES, Pace
from server.http.plain_parser import PlainParser
from server.http.streaming import WRITE_NOW

HEAD_SECONDS = 20.0  # from the connection, or a request's first byte, to the end of its headers
MAX_HEAD_BYTES = 64 * 2**10  # looked at as bytes come, so that it may be passed by as much as comes at once
MAX_HEADERS = 256  # each that is looked for is compared with all of them
MAX_URL_BYTES = 8 * 2**10  # each field of a query takes a microsecond
LINGER_SECONDS = 2.0  # for a client to read its answer while it still sends
FLUSH_SECONDS = 30.0  # for a client to read the last of its answer
SLICE = 2**10  # bytes that are parsed at once, but of a body whose length was told
MOST_PARTS = 100  # of bodies that one connection has parsed in a turn of the event loop: half a millisecond
FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection that sends its head too slowly, or never, or without end."""

    transport: GentleTransport  # type: ignore[assignment]
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0  # parsed since a request began, or since there was a part of its body
    _body_left = 0  # bytes of a body whose length was told
    _parts = 0  # of bodies, in this turn of the event loop
    _kept = b""  # what has come and is not parsed yet

    def __init__(self, *rest: Any, open_connections: Connections, unread: Pace, **more: Any) -> None:  # noqa: ANN401  uvicorn's own
        super().__init__(*rest, **more)
        self.parser = PlainParser(self)  # type: ignore[assignment]
        self._open_connections = open_connections
        self._unread = unread

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head, unless there are too many connections."""
        super().connection_made(GentleTransport(transport, self.loop, self._is_sending))  # type: ignore[arg-type]
        if self._open_connections.opened(self):
            self._await_head()
        else:
            self.transport.write(FULL)
            self.transport.close()

    def make_room(self) -> None:
        """Close at once, for another connection."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._open_connections.closed(self)
        super().connection_lost(exc)
        self._head_is_there()
        self.transport.forget()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, or keep it for after what is kept: it was on its way when reading was paused."""
        if len(data) > SMALL_BYTES:
            self._take_turn(len(data))
        if self.transport.is_closing():
            return  # it is thrown away
        if self._kept:
            self._kept += data
        else:
            self._parse(data)

    def _take_turn(self, size: int) -> None:
        """Read no more in this turn of the event loop than belongs into it, whatever becomes of what is read.

        A socket that is ready is read 32 times, and 40 clients may send as fast as they are read.
        """
        if not self._unread.take(size):
            self.transport.hold("turn")
            self._unread.later(size, partial(self.transport.release, "turn"))

    def _parse(self, data: bytes) -> None:
        """Parse as much as belongs into one turn of the event loop, and no further than a request that has to wait.

        A socket gives 256 KB at once: 43,000 chunks of a byte, or 9,000 requests.
        """
        at = self._parts = 0
        while at < len(data) and not self.transport.is_closing():
            if self.pipeline or self._parts >= MOST_PARTS:
                self._kept = data[at:]
                self.transport.hold("kept")
                if not self.pipeline:
                    self.loop.call_soon(self._parse_kept)
                return
            part = data[at : at + (self._body_left or SLICE)]
            at += len(part)
            self._parse_part(part)

    def _parse_kept(self) -> None:
        kept, self._kept = self._kept, b""
        self._parse(kept)
        if not self._kept:
            self.transport.release("kept")

    def _parse_part(self, data: bytes) -> None:
        """Parse, and count what is no body: a head, and what may stand around the parts of a body without end."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        if self._deadline is None:
            self.transport.abort()
        else:
            self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._head_bytes = 0
        if self._deadline is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one that comes after the body is none, whatever it is called."""
        if self._deadline is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; its body has limits of its own. Raises ValueError, which is answered with 400."""
        if len(self.headers) > MAX_HEADERS or len(self.url) > MAX_URL_BYTES:
            raise ValueError(f"there are {len(self.headers)} headers, and the URL has {len(self.url)} bytes")
        self._head_is_there()
        self._head_bytes = 0
        self._open_connections.begun(self)
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        super().on_headers_complete()
        self.scope["extensions"] = {WRITE_NOW: {"write": partial(_write_now, self.cycle)}}

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._parts += 1
        self._head_bytes = 0
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there; its answer may have been sent before."""
        self._body_left = self._head_bytes = 0
        if self.parser.should_upgrade():
            return  # it is still to come
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._open_connections.at_work(self)

    def on_response_complete(self) -> None:
        """An answer was sent; the next request may have come already."""
        super().on_response_complete()
        if self._kept and not self.pipeline:
            self.loop.call_soon(self._parse_kept)
        if self.cycle.response_complete:
            self._open_connections.at_rest(self)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_sending(self) -> bool:
        """Whether a part of a request is still to come."""
        return self._deadline is not None or (self.cycle is not None and self.cycle.more_body)


def _write_now(cycle: RequestResponseCycle, body: bytes) -> bool:
    """Write a part of an answer whose length is not told, unless the connection is busy or gone."""
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


def _unheard(_: object) -> None:
    """Drop what is written to a connection that is closed."""


class GentleTransport:
    """A transport that closes without destroying its answer, and without waiting for ever.

    Closing a socket with unread input sends a reset, and a reset discards what the client has not read: a request
    that is refused before its body has arrived would never hear of it. So the sending side is closed first, and input
    is thrown away for a while. And a client that never reads the last bytes does not keep its connection.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_sending: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self.write: Callable[[bytes], object] = transport.write  # called for every token
        self._loop = loop
        self._is_sending = is_sending
        self._closing = False
        self._paused = False  # by whoever reads
        self._holds: set[str] = set()  # why it is held
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  the transport's own
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless it is held."""
        self._paused = False
        if not self._holds:
            self._transport.resume_reading()

    def hold(self, why: str) -> None:
        """Read nothing, whoever resumes reading, until it is released from this."""
        self._holds.add(why)
        self._transport.pause_reading()

    def release(self, why: str) -> bool:
        """Read on, unless it is held or paused otherwise; False if the connection is closed."""
        self._holds.discard(why)
        if self._transport.is_closing():
            return False
        if not self._paused and not self._holds:
            self._transport.resume_reading()
        return True

    def is_closing(self) -> bool:
        """Whether nothing more is read or written."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Send what is written, and close."""
        if self._closing:
            return
        self._closing = True
        self.write = _unheard  # a request that came before one that is refused may still be answered
        if self._transport.is_closing() or not self._is_sending():
            self._close()
            return
        self._holds.clear()
        self.resume_reading()
        self._transport.write_eof()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._close)

    def forget(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _close(self) -> None:
        self._transport.close()
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._transport.abort)
