"""A connection to the engine, on the event loop of the HTTP process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from server.engine import wire
from server.engine.buffers import SharedBuffer
from server.engine.outbox import Outbox
from server.engine.wire import Kind


class Connection:
    """Reads frames from the engine's socket, and sends it some. Only for the event loop's thread.

    `take` gets each frame's kind and body; `ended` is called once if the other side closes. Neither is after `close`.
    """

    def __init__(self, end: socket.socket, take: Callable[[Kind, bytes], None], ended: Callable[[], None]) -> None:
        end.setblocking(False)
        self._socket = end
        self._take = take
        self._ended = ended
        self._frames = wire.Frames()
        self._outbox = Outbox(end)
        self._open = True
        self._heard = False  # anything since `heard` was last asked
        asyncio.get_running_loop().add_reader(end, self._read)

    def post(self, data: bytes, buffer: SharedBuffer | None = None) -> None:
        """Send a frame without waiting; nothing happens once it is closed."""
        if self._open:
            self._outbox.post(data, buffer)

    def heard(self) -> bool:
        """Whether anything has come since this was last asked."""
        heard, self._heard = self._heard, False
        return heard

    def close(self) -> None:
        """Hear and tell nothing more."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket)
            self._outbox.close()
            self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(wire.READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            self._ended()
            return
        self._heard = True
        for kind, body in self._frames.feed(data):
            if self._open:  # or what came before has ended it
                self._take(kind, body)
