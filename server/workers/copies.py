"""Questions answered each by a copy of a process: what one takes is given back with its end; none waits for another.

The process itself only forks and waits, so that what it has read before, which every copy has too, is there once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from server.workers.process import receive, send


@dataclass(frozen=True)
class _Copy:
    """A copy of the process, and the connection of the question that it answers."""

    pid: int
    connection: socket.socket

    def end(self) -> None:
        """Kill it; its pipe tells when it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Copies:
    """Forks for each connection that comes over `server`, until that ends.

    `answer` is run in a copy, which ends with it; `lost` makes the answer of one that could not, by the signal that has
    ended it, if one has.
    """

    def __init__(
        self, server: socket.socket, answer: Callable[[memoryview], bytes], lost: Callable[[int | None], bytes]
    ) -> None:
        self._server = server
        self._answer = answer
        self._lost = lost
        self._poll = select.poll()
        self._at_work: dict[int, _Copy] = {}  # by the descriptor of a pipe that ends with it
        self._by_connection: dict[int, _Copy] = {}

    def run(self) -> None:
        """Serve until the other side has gone; what is at work ends with that."""
        self._poll.register(self._server, select.POLLIN)
        try:
            while True:
                for descriptor, _ in self._poll.poll():
                    if descriptor == self._server.fileno():
                        self._begin()
                    elif descriptor in self._at_work:
                        self._ended(descriptor)
                    elif descriptor in self._by_connection:
                        self._by_connection[descriptor].end()
        except (EOFError, ConnectionResetError):  # reset: it has not read what it was told
            for copy in self._at_work.values():
                copy.end()

    def _begin(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._server, 1, 1)
        if not data:
            raise EOFError("the other side has gone")
        connection = socket.socket(fileno=descriptors[0])
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            self._be_a_copy(connection)
        os.close(writing)
        copy = _Copy(pid, connection)
        self._at_work[reading] = self._by_connection[connection.fileno()] = copy
        self._poll.register(reading, 0)  # their ends alone
        self._poll.register(connection, 0)

    def _be_a_copy(self, connection: socket.socket) -> None:
        """Answer, and end. Nothing of the others is held open: who waits must hear of the end of the process."""
        with suppress(BaseException):
            for each in (self._server, *(copy.connection for copy in self._at_work.values())):
                each.close()
            with connection.makefile("rwb") as file:
                send(file, [self._answer(receive(file))])
            os._exit(0)
        os._exit(1)

    def _ended(self, pipe: int) -> None:
        copy = self._at_work.pop(pipe)
        del self._by_connection[copy.connection.fileno()]
        self._poll.unregister(pipe)
        self._poll.unregister(copy.connection)
        os.close(pipe)
        _, status = os.waitpid(copy.pid, 0)
        with copy.connection as connection:
            if status:
                ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
                with suppress(OSError), connection.makefile("rwb") as file:  # nobody may wait for it any more
                    send(file, [self._lost(ended_by)])
