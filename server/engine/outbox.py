"""What the HTTP process tells the engine's, sent without waiting for its socket."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

from server.engine.buffers import SharedBuffer
from server.engine.wire import MAX_DESCRIPTORS


class Outbox:
    """Sends frames over a socket that does not block. Only for the event loop's thread.

    What is posted within one turn of the loop is sent at once; what the socket does not take waits for it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames: deque[tuple[bytes, SharedBuffer | None]] = deque()
        self._flushing = False  # a call of `flush` is to come

    def post(self, data: bytes, buffer: SharedBuffer | None = None) -> None:
        """Send a frame, and the descriptor of its buffer, before the event loop looks for events again."""
        self._frames.append((data, buffer))
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what the socket takes now."""
        self._flushing = False
        while self._frames and not self._flushing:
            batch = [self._frames.popleft() for _ in range(min(len(self._frames), MAX_DESCRIPTORS))]
            data = b"".join(data for data, _ in batch)
            descriptors = [buffer.descriptor for _, buffer in batch if buffer is not None]
            try:
                if descriptors:
                    sent = socket.send_fds(self._connection, [data], descriptors)
                else:
                    sent = self._connection.send(data)
            except (BlockingIOError, InterruptedError):
                self._frames.extendleft(reversed(batch))
                self._flush_when_writable()
            except ConnectionError:
                return  # what there is left to read tells why
            else:
                if sent < len(data):  # the descriptors travel with the first byte
                    self._frames.appendleft((data[sent:], None))
                    self._flush_when_writable()

    def close(self) -> None:
        """Forget what has not been sent; before the socket is closed."""
        asyncio.get_running_loop().remove_writer(self._connection)
        self._frames.clear()

    def _flush_when_writable(self) -> None:
        self._flushing = True
        asyncio.get_running_loop().add_writer(self._connection, self._flush_on)

    def _flush_on(self) -> None:
        asyncio.get_running_loop().remove_writer(self._connection)
        self.flush()
